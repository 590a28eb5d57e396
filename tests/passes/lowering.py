"""Plans with round numbers, so that lowered graphs read the same on every machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from qcompiler.plan import Role, TensorPlan
from qcompiler.recipe import MatchRule
from qcompiler.state import Context, Fact, State
from tests.compiling import context, run_passes, samples, start

ACTIVATION_SCALE, ZERO_POINT, WEIGHT_SCALE = 0.0625, 128, 0.0078125
CLIPPED_SCALE = 6 / 256
"""Scale behind Relu and Clip: 255 steps stay below 6."""


def rounded_plan(
    proto: onnx.ModelProto, target: str = "x86", rules: tuple[MatchRule, ...] = (), bits: str = "W8A8"
) -> tuple[State, Context]:
    """Return a state in which every planned tensor has a grid of round numbers, and the context."""
    state = start(proto)
    where = context(target, samples(state.model, 2), rules, bits)
    state = run_passes(state, where, "place")
    gridded = [_gridded(state, t) for t in state.plan.tensors.values()]
    facts = state.facts | {Fact.RANGES, Fact.WEIGHT_SCALES, Fact.STATISTICS}
    return replace(state, plan=state.plan.with_tensors(*gridded), facts=facts), where


def _gridded(state: State, entry: TensorPlan) -> TensorPlan:
    if entry.role is Role.ACTIVATION:
        rectified = _rectified(state, entry.name)
        scale = np.float32(CLIPPED_SCALE if rectified else ACTIVATION_SCALE)
        zero = np.int32(0 if rectified else ZERO_POINT)
        return replace(entry, scale=np.asarray(scale), zero_point=np.asarray(zero))
    value = next(g.initializers[entry.name] for g in state.model.graphs() if entry.name in g.initializers)
    axis = entry.spec.axis if entry.spec is not None else None
    channels = () if axis is None else (value.const_value.shape.numpy()[axis],)
    scale = np.full(channels, WEIGHT_SCALE, np.float32) * (1 + np.arange(np.prod(channels, dtype=int)) % 2)
    return replace(
        entry, scale=np.asarray(scale, np.float32).reshape(channels), zero_point=np.zeros(channels, np.int32)
    )


def _rectified(state: State, name: str) -> bool:
    makers = {o.name: n.op_type for n in state.model.graph for o in n.outputs}
    return makers.get(name) in ("Relu", "Clip")


def sixteenths(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers that print short, between -1 and 1."""
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 16).astype(np.float32)
