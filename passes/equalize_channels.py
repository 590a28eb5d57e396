"""equalize-channels: let every channel use more of its activation's grid, by moving factors between layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Subset
from qcompiler.model.bounds import never_clips
from qcompiler.model.edit import clone, constant_of, replace_constant
from qcompiler.plan import Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.equalization import balanced_factors
from qcompiler.quant.histogram import StreamingStatistics
from qcompiler.quant.weights import absmax_scale, as_rows
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.runtime.capture import stream
from qcompiler.state import ChannelMoments, Context, Fact, State

CHANNELWISE = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout"}
)
"""Operators with f(s x) = s f(x) for s > 0, channel by channel."""

SAMPLES = 8
SUFFIX = ":factors"
SIGMAS = 4.0
MIN_GAIN_DB = 0.5
"""A trial of so few samples can mislead by some tenths of a decibel."""


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """A layer that reads the channels of another: ``offset`` is where they start among its input channels."""

    node: ir.Node
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    producer: ir.Node
    value: ir.Value
    """The activation that is quantized between the layers."""
    readers: tuple[_Reader, ...]


@dataclass(frozen=True, slots=True)
class EqualizeChannels:
    """Divides channels of an activation by factors and multiplies the next layers' weights by them.

    Only across positively homogeneous operators. At a Clip with an upper limit the factors would move the
    limit, so the pass refuses there, unless interval arithmetic proves that the limit is never reached.
    """

    name: ClassVar[str] = "equalize-channels"
    kind: ClassVar[PassKind] = PassKind.REWRITE
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES}
    )

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with an equivalent model whose channels are balanced."""
        model = clone(state.model)
        _relax_clips(model.graph)
        pairs, skipped = _find_pairs(model.graph)
        moments = dict(state.moments)
        chosen = self._choose(state, context, pairs, skipped)
        for pair in pairs:
            entry = chosen.get(_factor_name(pair))
            if entry is not None and entry.correction is not None:
                _apply(pair, entry.correction)
                _rescale_moments(moments, pair, entry.correction)
        plan = state.plan.with_tensors(*chosen.values())
        result = replace(state, model=model, moments=moments, plan=plan, facts=state.facts - self.invalidates)
        strongest = min((float(e.correction.min()) for e in chosen.values() if e.correction is not None), default=1.0)
        metrics = [Metric("equalized", len(chosen), "activations"), Metric("strongest factor", strongest, "ratio")]
        if chosen and context.trial is not None:
            before = context.trial(replace(state, facts=state.facts - self.invalidates))
            after = context.trial(result)
            metrics += [Metric("trial without", before, "dB"), Metric("trial with", after, "dB")]
            if after < before + MIN_GAIN_DB:
                note = "not kept: it gained nothing on the acceptance samples"
                report = PassReport(name=self.name, changed=False, metrics=tuple(metrics), notes=(note,))
                return PassResult(state, replace(report, skipped=tuple(skipped)))
        report = PassReport(name=self.name, changed=bool(chosen), metrics=tuple(metrics), skipped=tuple(skipped))
        return PassResult(result if chosen else state, report)

    def _choose(self, state: State, context: Context, pairs: list[_Pair], skipped: list[Skip]) -> dict[str, TensorPlan]:
        """Return the factors of every pair: those the plan recorded if it has any, else computed ones."""
        recorded = {k: t for k, t in state.plan.tensors.items() if t.role is Role.FACTORS and k.endswith(SUFFIX)}
        if recorded or context.recipe.replay is not None:
            return recorded
        channels = _channel_statistics(state, context, [p.value.name or "" for p in pairs])
        found: dict[str, TensorPlan] = {}
        for pair in pairs:
            name = pair.value.name or ""
            if name not in channels:
                skipped.append(Skip(name, "nothing is known about its channels"))
                continue
            factors = _factors(pair, *channels[name])
            if factors is not None and factors.min() <= 0.99:
                key = _factor_name(pair)
                found[key] = TensorPlan(
                    name=key, role=Role.FACTORS, correction=factors, decided_by=(self.name,), reason="balanced noise"
                )
        return found


def _factor_name(pair: _Pair) -> str:
    return f"{pair.value.name}{SUFFIX}"


def _relax_clips(graph: ir.Graph) -> None:
    """Make a Relu of every Clip that provably never reaches its limit: channels that grow might reach it."""
    for node in graph:
        if node.op_type == "Clip" and never_clips(node):
            node.op_type = "Relu"
            node.resize_inputs(1)


def _find_pairs(graph: ir.Graph) -> tuple[list[_Pair], list[Skip]]:
    pairs: list[_Pair] = []
    skipped: list[Skip] = []
    for node in graph:
        if node.op_type != "Conv" or not _own_constants(node):
            continue
        readers, refusal = _readers(node.outputs[0], 0)
        if refusal:
            skipped.append(Skip(node.outputs[0].name or "", refusal))
            continue
        value = node.outputs[0]
        follower = next(iter(value.uses())).node if len(value.uses()) == 1 else None
        if follower is not None and follower.op_type in ("Relu", "LeakyRelu"):
            value = follower.outputs[0]
        pairs.append(_Pair(node, value, tuple(readers)))
    return pairs, skipped


def _readers(value: ir.Value, offset: int) -> tuple[list[_Reader], str]:
    """Return all layers that read a value's channels, or why the factors cannot be moved into them."""
    if value.is_graph_output():
        return [], "it is an output of the model"
    found: list[_Reader] = []
    for use in value.uses():
        node = use.node
        if node.op_type in CHANNELWISE and use.idx == 0:
            more, refusal = _readers(node.outputs[0], offset)
        elif node.op_type == "Concat" and _axis(node) == 1:
            before = _channels_before(node, use.idx)
            if before is None:
                return [], f"channel counts at '{node.name}' are not known"
            more, refusal = _readers(node.outputs[0], offset + before)
        elif node.op_type == "Conv" and use.idx == 0 and _own_constants(node):
            more, refusal = [_Reader(node, offset)], ""
        elif node.op_type == "Clip":
            return [], f"'{node.name}' clips at a fixed value, which factors would move"
        else:
            return [], f"'{node.name}' ({node.op_type}) is not positively homogeneous per channel"
        if refusal:
            return [], refusal
        found += more
    return found, "" if found else "nothing reads it"


def _own_constants(node: ir.Node) -> bool:
    values = [v for v in node.inputs[1:3] if v is not None]
    own = (v.const_value is not None and len(v.uses()) == 1 and not v.is_graph_output() for v in values)
    return bool(values) and all(own)


def _axis(node: ir.Node) -> int:
    attribute = node.attributes.get("axis")
    return attribute.as_int() if attribute is not None else -1


def _channels_before(node: ir.Node, index: int) -> int | None:
    total = 0
    for value in node.inputs[:index]:
        size = value.shape[1] if value is not None and value.shape is not None and len(value.shape) > 1 else None
        if not isinstance(size, int):
            return None
        total += size
    return total


def _channel_statistics(
    state: State, context: Context, names: list[str]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return (peak, power) per channel of each value, from a few samples or from BatchNorm moments."""
    if context.calibration is None or not names:
        known = {n: state.moments[n] for n in names if n in state.moments}
        return {n: (np.abs(m.mean) + SIGMAS * m.std, m.mean**2 + m.std**2) for n, m in known.items()}
    few = Subset(context.calibration, tuple(range(min(SAMPLES, len(context.calibration)))))
    collected = {n: StreamingStatistics(channel_axis=1) for n in names}
    for values in stream(state.model, names, few, threads=context.recipe.threads):
        for name, array in values.items():
            collected[name].add(np.asarray(array, np.float32))
    results = {n: c.result() for n, c in collected.items() if c.samples}
    return {n: (s.channel_peak, s.channel_power) for n, s in results.items() if s.channel_peak.size}


def _factors(pair: _Pair, peak: NDArray[np.float64], power: NDArray[np.float64]) -> NDArray[np.float64] | None:
    energy, noise = np.zeros(peak.size), np.zeros(peak.size)
    for reader in pair.readers:
        weight = constant_of(reader.node.inputs[1])
        if weight is None:
            return None
        groups = _groups(reader.node)
        wide = np.asarray(weight, np.float64).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        step = absmax_scale(as_rows(np.asarray(weight, np.float32), 0), 127).astype(np.float64)
        own_energy = np.square(wide).sum((1, 3)).reshape(-1)
        squared = np.square(step).reshape(groups, -1).sum(1) * wide.shape[3]
        own_noise = np.zeros(own_energy.size) if weight.shape[1] == 1 else np.repeat(squared, weight.shape[1])
        part = slice(reader.offset, reader.offset + peak.size)
        if own_energy[part].size != peak.size:
            return None
        energy, noise = energy + own_energy[part], noise + own_noise[part]
    return balanced_factors(peak, power, energy, noise)


def _groups(node: ir.Node) -> int:
    attribute = node.attributes.get("group")
    return attribute.as_int() if attribute is not None else 1


def _apply(pair: _Pair, factors: NDArray[np.float64]) -> None:
    """Divide the channels that the producer makes, and multiply the weights that read them."""
    for value in pair.producer.inputs[1:3]:
        array = constant_of(value)
        if value is not None and array is not None:
            divisors = factors.reshape(-1, *([1] * (array.ndim - 1)))
            replace_constant(value, (array / divisors).astype(array.dtype))
    for reader in pair.readers:
        value = reader.node.inputs[1]
        weight = constant_of(value)
        if value is None or weight is None:
            continue
        groups = _groups(reader.node)
        wide = np.ones(weight.shape[1] * groups)
        wide[reader.offset : reader.offset + factors.size] = factors
        per_group = np.repeat(wide.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        shaped = per_group.reshape(*weight.shape[:2], *([1] * (weight.ndim - 2)))
        replace_constant(value, (weight * shaped).astype(weight.dtype))


def _rescale_moments(moments: dict[str, ChannelMoments], pair: _Pair, factors: NDArray[np.float64]) -> None:
    for value in (pair.producer.outputs[0], pair.value):
        known = moments.get(value.name or "")
        if known is not None and known.mean.size == factors.size:
            moments[value.name or ""] = ChannelMoments(mean=known.mean / factors, std=known.std / factors)
