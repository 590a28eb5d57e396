"""The walk through a network that prunes layer after layer, each on what those before it make of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset, Subset
from qcompiler.layer_problems import row_floor, takes_mean_back
from qcompiler.lowering import correct_bias, weight_codes
from qcompiler.model.edit import add_initializer, clone, drop_unused, fresh_name, value_names
from qcompiler.plan import CompressionPlan, Role, TensorPlan
from qcompiler.pruning.curves import choice_of
from qcompiler.pruning.prunable import Prunable
from qcompiler.quant.gram import Float64, PairedAccumulator, PairedGram, damped, symmetric
from qcompiler.quant.grid import dequantize, power_ratio_db
from qcompiler.quant.levels import Levels, uniform_levels
from qcompiler.quant.pruning import METHODS, Mask, Pattern, by_magnitude, error_of
from qcompiler.quant.solvers.descent import polish
from qcompiler.quant.solvers.problem import LayerProblem, Solution
from qcompiler.quant.solvers.scales import covering_scale, round_to_levels, search_scale
from qcompiler.runtime.capture import stream
from qcompiler.runtime.grams import POSITIONS, GramLayout, gram_layout, input_columns
from qcompiler.samples import model_macs
from qcompiler.state import Context, State

WORK_MACS = 1.5e12
"""What all runs of the walk may compute together; it decides how many samples they see, not the clock."""
FEWEST = 8
FULL = np.arange(-127, 128, dtype=np.int64).astype(np.int8)
SWEEPS = 4
"""Of the descent over the codes that stay: with 8 bits little is left to gain."""


@dataclass(frozen=True, slots=True, eq=False)
class Removed:
    """A pruned weight.

    Attributes:
        entry: its plan.
        biases: the corrections of the layers that read it; empty where a later pass finds them.
        lost: share of the output's variance that is lost, beside what the layers before lost; None if unknown.
        method: what chose the zeros.
        note: why no better method did, or "".
    """

    entry: TensorPlan
    biases: tuple[TensorPlan, ...]
    lost: float | None
    method: str
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """Prunes weights in the order in which the network reads them.

    The inputs of a layer are those that the layers before it, pruned and rounded, make; what it is to follow is the
    output of the float model. So a layer makes up for the errors before it as far as its own weights can.

    Attributes:
        state: a state with scaled weights.
        context: its calibration samples are run.
        shares: weight -> share of zeros.
        pattern: where zeros may be.
        by: the pass that decides.
    """

    state: State
    context: Context
    shares: Mapping[str, float]
    pattern: Pattern | None
    by: str

    def run(self, weights: Sequence[Prunable]) -> tuple[list[Removed], ir.Model]:
        """Return all weights that are to have zeros, pruned, in graph order, and the float model with them.

        Raises:
            DataError: the model does not run on a sample.
        """
        wanted = [w for w in weights if choice_of(w, w.weight.array.size, self.shares[w.name], None).dropped > 0]
        changed, done = clone(self.state.model), []
        groups = list(_by_input(wanted))
        samples = self._samples(len(groups))
        for group in groups:
            moments = self._moments(changed, group, samples) if samples is not None else {}
            for weight in group:
                removed = self._removed(weight, moments.get(weight.name))
                _write(changed, weight, removed, self.state)
                done.append(removed)
                self.context.progress("pruning", len(done), len(wanted))
        return done, changed

    def _samples(self, groups: int) -> Dataset | None:
        samples = self.context.calibration
        if samples is None:
            return None
        count = int(WORK_MACS / max(model_macs(self.state.model) * groups, 1))
        count = min(max(count, FEWEST), len(samples))
        return Subset(samples, tuple(int(i) for i in np.linspace(0, len(samples) - 1, count).round()))

    def _moments(self, changed: ir.Model, group: Sequence[Prunable], samples: Dataset) -> dict[str, PairedGram]:
        """Return the moments of the inputs of weights that read the same value, in both models."""
        pairs = [(w.name, n, _layout(n)) for w in group if w.second_order for n in w.nodes]
        if not pairs:
            return {}
        values = list(dict.fromkeys(_input(n) for _, n, _ in pairs))
        sums = {name: PairedAccumulator(layout.groups, layout.inputs) for name, _, layout in pairs}
        threads, limit = self.context.recipe.threads, max(POSITIONS // len(samples), 1)
        first, second = (_up_to(m, values) for m in (self.state.model, changed))
        both = zip(
            stream(first, values, samples, threads=threads),
            stream(second, values, samples, threads=threads),
            strict=True,
        )
        for index, (followed, found) in enumerate(both):
            for name, node, layout in pairs:
                seed = (self.context.recipe.seed, index)
                data = (np.asarray(v[_input(node)]) for v in (followed, found))
                sums[name].add(*(input_columns(layout, d, limit, seed) for d in data))
        return {name: total.result() for name, total in sums.items()}

    def _removed(self, weight: Prunable, moments: PairedGram | None) -> Removed:
        size = weight.weight.array.size
        choice = choice_of(weight, size, self.shares[weight.name], self.pattern)
        if moments is None or not weight.second_order:
            return self._by_magnitude(weight, by_magnitude(weight.weight.rows(), choice).mask)
        rows, centered = weight.weight.rows(), all(takes_mean_back(n, self.state.plan) for n in weight.nodes)
        gram = moments.changed.centered() if centered else symmetric(moments.changed.second)
        matrix = damped(gram)
        added = np.einsum("gii->gi", matrix - gram)
        target = moments.target(rows, matrix, added, centered=centered)
        pruned = METHODS[weight.method](target, matrix, choice)
        problem = _problem(weight, target, pruned.weight, matrix, row_floor(self.state, weight.weight))
        start = Solution(
            (round_to_levels(pruned.weight / problem.scale[:, :, None], problem.levels) * pruned.mask).astype(np.int8),
            problem.scale,
        )
        solution = polish(problem, start, sweeps=SWEEPS, kept=pruned.mask)
        power = error_of(rows, np.zeros_like(rows), matrix)
        lost = error_of(target, solution.weight(), matrix) / power if power > 0 else 0.0
        biases = self._biases(weight, rows, solution.weight(), moments) if centered else ()
        return Removed(self._entry(weight, problem, solution), biases, lost, weight.method, weight.note)

    def _by_magnitude(self, weight: Prunable, mask: Mask) -> Removed:
        """Return a weight without its smallest numbers; the codes of all others are as they were planned."""
        entry = weight.weight.entry
        codes = weight_codes(weight.weight.array, entry) * weight.weight.shaped(mask)
        return Removed(self._decided(weight, codes.astype(np.int8), entry), (), None, "magnitude", weight.note)

    def _biases(self, weight: Prunable, rows: Float64, pruned: Float64, moments: PairedGram) -> tuple[TensorPlan, ...]:
        """Return corrections that give every output channel the mean that it has in the float model."""
        shift = np.einsum("gri,gi->gr", rows, moments.mean) - np.einsum("gri,gi->gr", pruned, moments.changed.mean)
        correction, reason = shift.reshape(-1), "mean error of the pruned weights and of the layers before"
        return tuple(
            TensorPlan(
                name=f"{n.name}:bias", role=Role.BIAS, correction=correction, decided_by=(self.by,), reason=reason
            )
            for n in weight.nodes
        )

    def _entry(self, weight: Prunable, problem: LayerProblem, solution: Solution) -> TensorPlan:
        scale = weight.weight.scale(solution.scale)
        reach = float(scale.max()) * max(abs(int(problem.levels[0])), abs(int(problem.levels[-1])))
        levels = problem.levels if weight.weight.num_bits < 8 else None
        entry = replace(
            weight.weight.entry,
            scale=scale,
            zero_point=np.zeros(scale.shape, np.int32),
            levels=levels,
            clip=(-reach, reach),
        )
        return self._decided(weight, weight.weight.shaped(solution.codes), entry)

    def _decided(self, weight: Prunable, codes: NDArray[np.int8], entry: TensorPlan) -> TensorPlan:
        sparsity = float((codes == 0).mean())
        exact = weight.weight.array
        axis = entry.spec.axis if entry.spec is not None else None
        error_db = entry.error_db
        if entry.scale is not None and entry.zero_point is not None:
            rounded = dequantize(codes, entry.scale, entry.zero_point, axis)
            error_db = power_ratio_db(float(np.square(exact).sum()), float(np.square(rounded - exact).sum()))
        note = f", {weight.note}" if weight.note else ""
        return replace(
            entry,
            codes=codes,
            sparsity=sparsity,
            error_db=error_db,
            reason=f"{100 * sparsity:.1f} % zeros by {weight.method}{note}",
            decided_by=(*entry.decided_by, self.by),
        )


def _problem(weight: Prunable, target: Float64, pruned: Float64, gram: Float64, floor: Float64) -> LayerProblem:
    """Return the problem whose solutions are codes, with scales that suit the pruned weights."""
    levels = _levels(weight)
    narrow = weight.weight.num_bits < 8
    scale = search_scale(pruned, gram, levels, floor) if narrow else covering_scale(pruned, levels, floor)
    return LayerProblem(weight=target, gram=gram, levels=levels, scale=scale, floor=floor)


def _levels(weight: Prunable) -> Levels:
    """Return levels with a 0: the planned ones if they have it."""
    if weight.weight.num_bits >= 8:
        return FULL
    planned = weight.weight.entry.levels
    return planned if planned is not None and 0 in planned else uniform_levels(weight.weight.num_bits)


def _by_input(weights: Sequence[Prunable]) -> Iterator[list[Prunable]]:
    """Yield stretches of weights that read the same values."""
    group: list[Prunable] = []
    for weight in weights:
        if group and {_input(n) for n in weight.nodes} != {_input(n) for n in group[0].nodes}:
            yield group
            group = []
        group.append(weight)
    if group:
        yield group


def _input(node: ir.Node) -> str:
    return (node.inputs[0].name or "") if node.inputs[0] is not None else ""


def _layout(node: ir.Node) -> GramLayout:
    found = gram_layout(node)
    if isinstance(found, str):
        raise TypeError(found)  # a weight with a second-order method has a layout
    return found


def _up_to(model: ir.Model, values: Sequence[str]) -> ir.Model:
    """Return a model that computes some values and nothing else; graph inputs are no outputs."""
    cut = clone(model)
    made = {o.name: o for n in cut.graph for o in n.outputs}
    cut.graph.outputs.clear()
    cut.graph.outputs.extend(made[v] for v in values if v in made)
    if not cut.graph.outputs:
        return model
    drop_unused(cut)
    return cut


def _write(model: ir.Model, weight: Prunable, removed: Removed, state: State) -> None:
    """Give a float model a pruned weight and the biases of its layers; edits the model."""
    entry, taken = removed.entry, value_names(model)
    if entry.codes is None or entry.scale is None or entry.zero_point is None or entry.spec is None:
        return
    array = dequantize(entry.codes, entry.scale, entry.zero_point, entry.spec.axis)
    plan = CompressionPlan().with_tensors(*removed.biases)
    names = {n.name for n in weight.nodes}
    everywhere = ir.traversal.RecursiveGraphIterator(model.graph)
    nodes = [n for n in everywhere if n.name in names and n.inputs[1] is not None and n.inputs[1].name == entry.name]
    dtype = nodes[0].inputs[1].dtype if nodes[0].inputs[1] is not None else None
    stored = array if dtype is None else array.astype(dtype.numpy())
    value = add_initializer(model.graph, fresh_name(taken, f"{entry.name}_pruned"), stored)
    for node in nodes:
        node.replace_input_with(1, value)
        correct_bias(model.graph, node, plan, taken)
