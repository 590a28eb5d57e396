"""smooth-activations: take outliers out of what token-wise products read, by factors that go into their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.blockwise import multiplies_matrix
from qcompiler.data import Dataset, Subset
from qcompiler.model.edit import add_initializer, clone, constant_of, fresh_name, replace_constant, value_names
from qcompiler.plan import Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.smoothing import ALPHAS, product_level, smoothing_factors
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.runtime.capture import stream
from qcompiler.state import Context, Fact, State

SAMPLES = 16
OUTPUTS = 128
"""Outputs of a product on which factors are compared."""
MIN_GAIN_DB = 0.5
"""What the products behind a value have to gain where factors cost nothing."""
MIN_PAID_GAIN_DB = 2.0
"""The same where the value is multiplied at run time."""
MIN_TRIAL_GAIN_DB = 0.1
TOKEN_RANK = 3
SUFFIX = ":smoothing"


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """A value, and the products that read it.

    Attributes:
        value: what is divided by the factors.
        readers: the products whose weights are multiplied by them.
        affine: constants of the normalization that makes the value, which take the factors without any cost; empty
            where others read the value too, or nothing of that sort makes it.
    """

    value: ir.Value
    readers: tuple[ir.Node, ...]
    affine: tuple[ir.Value, ...]

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def weights(self) -> list[NDArray[np.float32]]:
        """The weights, each of shape (channels, outputs)."""
        arrays = (constant_of(node.inputs[1]) for node in self.readers)
        return [np.asarray(a, np.float32) for a in arrays if a is not None]


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    factors: NDArray[np.float64]
    alpha: float
    before_db: float
    after_db: float


@dataclass(frozen=True, slots=True)
class SmoothActivations:
    """Divides channels of an activation by factors, and multiplies the rows of weights that read them by the same.

    Behind a LayerNorm that only such products read, its own scale and bias take the factors. Elsewhere, as behind a
    normalization that a residual branch reads too, or behind GELU, the value is multiplied at run time: that is little
    beside a product, but not nothing, so that it has to gain more. The share that goes to the weights is chosen for
    every value by the error of its products on calibration samples that the factors were not computed from.
    """

    name: ClassVar[str] = "smooth-activations"
    kind: ClassVar[PassKind] = PassKind.REWRITE
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES}
    )

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with an equivalent model whose activations are smoother.

        Raises:
            DataError: the model does not run on a sample.
        """
        model = clone(state.model)
        groups = _groups(model.graph, context)
        recorded = {k: t for k, t in state.plan.tensors.items() if t.role is Role.FACTORS and k.endswith(SUFFIX)}
        skipped: list[Skip] = []
        rows: list[TableRow] = []
        chosen = recorded
        if not recorded and context.recipe.replay is None:
            chosen = self._choose(groups, state, context, (skipped, rows))
        for group in groups:
            entry = chosen.get(group.name + SUFFIX)
            if entry is not None and entry.correction is not None:
                _apply(model, group, entry.correction)
        free = sum(bool(g.affine) for g in groups if g.name + SUFFIX in chosen)
        metrics = [Metric("smoothed", len(chosen), "activations"), Metric("without cost", free, "activations")]
        table = (Table("SQNR of the products behind a value", "dB", ("before", "after", "alpha"), tuple(rows)),)
        report = PassReport(name=self.name, changed=bool(chosen), skipped=tuple(skipped), tables=table if rows else ())
        result = replace(
            state, model=model, plan=state.plan.with_tensors(*chosen.values()), facts=state.facts - self.invalidates
        )
        if chosen and not recorded and context.trial is not None:
            before = context.trial(replace(state, facts=state.facts - self.invalidates))
            after = context.trial(result)
            metrics += [Metric("trial without", before, "dB"), Metric("trial with", after, "dB")]
            if after < before + MIN_TRIAL_GAIN_DB:
                note = "not kept: it gained nothing on the acceptance samples"
                return PassResult(state, replace(report, changed=False, metrics=tuple(metrics), notes=(note,)))
        return PassResult(result if chosen else state, replace(report, metrics=tuple(metrics)))

    def _choose(
        self, groups: Sequence[_Group], state: State, context: Context, said: tuple[list[Skip], list[TableRow]]
    ) -> dict[str, TensorPlan]:
        """Return the factors of every value that gains by them."""
        if context.calibration is None:
            said[0].extend(Skip(g.name, "there are no samples to see its channels on") for g in groups)
            return {}
        captured = _captured(state.model, groups, context.calibration, context.recipe.threads)
        found: dict[str, TensorPlan] = {}
        for number, group in enumerate(groups):
            context.progress("smoothing activations", number, len(groups))
            best = _best(group, captured[group.name], _bits(group, context))
            gain, wanted = best.after_db - best.before_db, MIN_GAIN_DB if group.affine else MIN_PAID_GAIN_DB
            if gain < wanted:
                said[0].append(Skip(group.name, f"its products would gain {gain:.1f} dB, less than {wanted:.1f} dB"))
                continue
            said[1].append(TableRow(group.name, (best.before_db, best.after_db, best.alpha)))
            key = group.name + SUFFIX
            reason = f"smoothed with alpha {best.alpha}: {best.before_db:.1f} dB to {best.after_db:.1f} dB"
            found[key] = TensorPlan(
                name=key, role=Role.FACTORS, correction=best.factors, decided_by=(self.name,), reason=reason
            )
        return found


def _groups(graph: ir.Graph, context: Context) -> list[_Group]:
    """Return the values of the main graph that token-wise products read, in order."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        data, weight = (node.inputs[0], node.inputs[1]) if len(node.inputs) > 1 else (None, None)
        if node.op_type != "MatMul" or data is None or weight is None or not multiplies_matrix(node):
            continue
        rule = context.recipe.rule_of([node.name or "", weight.name or ""])
        left = rule is not None and (rule.keep_float or rule.scheme == "weight_only")
        tokens = data.shape is not None and len(data.shape) >= TOKEN_RANK
        if tokens and not left and weight.is_initializer() and len(weight.uses()) == 1:
            readers.setdefault(data, []).append(node)
    return [_Group(value, tuple(nodes), _affine(value, nodes)) for value, nodes in readers.items()]


def _affine(value: ir.Value, readers: Sequence[ir.Node]) -> tuple[ir.Value, ...]:
    """Return scale and bias of the normalization that makes a value, where only these products read it."""
    if value.is_graph_output() or len(value.uses()) != len(readers):
        return ()
    maker = value.producer()
    if maker is None:
        return ()
    constants = list(maker.inputs[1:3]) if maker.op_type == "LayerNormalization" else []
    if maker.op_type == "Add":
        scaled = next((v.producer() for v in maker.inputs if v is not None and v.producer() is not None), None)
        if scaled is None or scaled.op_type != "Mul" or len(scaled.outputs[0].uses()) != 1:
            return ()
        constants = [v for n in (scaled, maker) for v in n.inputs if v is not None and v.const_value is not None]
        if len(constants) != len(("scale", "bias")):
            return ()
    own = [v for v in constants if v is not None and v.is_initializer() and len(v.uses()) == 1]
    width = constant_of(readers[0].inputs[1])
    size = width.shape[0] if width is not None else 0
    fits = all(v.const_value is not None and v.const_value.shape.numpy() == (size,) for v in own)
    return tuple(own) if own and len(own) == len(constants) and fits else ()


def _captured(
    model: ir.Model, groups: Sequence[_Group], samples: Dataset, threads: int
) -> dict[str, list[NDArray[np.float32]]]:
    """Return each value on a few samples, as rows."""
    few = Subset(samples, tuple(range(min(SAMPLES, len(samples)))))
    found: dict[str, list[NDArray[np.float32]]] = {g.name: [] for g in groups}
    if groups:
        for values in stream(model, list(found), few, threads=threads):
            for name, array in values.items():
                found[name].append(np.asarray(array, np.float32).reshape(-1, array.shape[-1]))
    return found


def _best(group: _Group, samples: Sequence[NDArray[np.float32]], num_bits: int) -> _Found:
    """Return the factors whose products are the most accurate on every second sample; the others give the peaks."""
    weights = group.weights
    seen, judged = samples[::2], samples[1::2] or samples
    peak = np.max([np.abs(s).max(0, initial=0.0) for s in seen], axis=0).astype(np.float64)
    weight_peak = np.max([np.abs(w).max(1) for w in weights], axis=0).astype(np.float64)
    few = [np.ascontiguousarray(w[:, :: max(1, w.shape[1] // OUTPUTS)]) for w in weights]
    before = product_level(judged, few, None, num_bits)
    best = _Found(np.ones(peak.size), 0.0, before, before)
    for alpha in ALPHAS:
        factors = smoothing_factors(peak, weight_peak, alpha)
        after = product_level(judged, few, factors, num_bits)
        if after > best.after_db:
            best = _Found(factors, alpha, before, after)
    return best


def _bits(group: _Group, context: Context) -> int:
    weight = group.readers[0].inputs[1]
    rule = context.recipe.rule_of([group.readers[0].name or "", weight.name or "" if weight is not None else ""])
    return context.recipe.weight_bits if rule is None or rule.num_bits is None else rule.num_bits


def _apply(model: ir.Model, group: _Group, factors: NDArray[np.float64]) -> None:
    """Divide a value's channels, and multiply the weights that read them."""
    for node in group.readers:
        value = node.inputs[1]
        array = constant_of(value)
        if value is not None and array is not None:
            replace_constant(value, (array * factors[:, None]).astype(array.dtype))
    if group.affine:
        for value in group.affine:
            array = constant_of(value)
            if array is not None:
                replace_constant(value, (array / factors).astype(array.dtype))
        return
    graph, taken = model.graph, value_names(model)
    inverse = add_initializer(graph, fresh_name(taken, f"{group.name}_factors"), (1 / factors).astype(np.float32))
    name = fresh_name(taken, f"{group.name}_smoothed")
    divided = ir.node("Mul", [group.value, inverse], name=name)
    divided.outputs[0].name = name
    divided.outputs[0].type, divided.outputs[0].shape = group.value.type, group.value.shape
    graph.insert_before(group.readers[0], divided)
    for node in group.readers:
        node.replace_input_with(0, divided.outputs[0])
