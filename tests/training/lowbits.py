"""Planned states whose weights have few bits, and the parts of a training on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from qcompiler.model.edit import constant_of
from qcompiler.plan import Role, TensorPlan
from qcompiler.quant.levels import even_levels
from qcompiler.state import Context, State
from tests.compiling import PLANNING, Fixed, planned, samples


def low_bit_state(
    proto: onnx.ModelProto, bits: int, data: Fixed | None = None, activations: int = 8
) -> tuple[State, Context]:
    """Return a planned state whose weights lie on the even levels of some bits, and a context with samples."""
    passes = ("fold-batch-norm", *PLANNING)
    state, where = planned(proto, data=data, passes=passes, bits=f"W8A{activations}")
    where = replace(where, acceptance=samples(state.model, count=8, seed=99))
    coarse = [_coarse(state, t, bits) for t in state.plan.tensors.values() if t.role is Role.WEIGHT]
    return replace(state, plan=state.plan.with_tensors(*coarse)), where


def _coarse(state: State, entry: TensorPlan, bits: int) -> TensorPlan:
    uses = (v for n in state.model.graph for v in n.inputs if v is not None and v.name == entry.name)
    array = constant_of(next(uses))
    assert array is not None
    assert entry.spec is not None
    levels = even_levels(bits)
    axis = entry.spec.axis
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) if axis is not None else array.reshape(1, -1)
    scale = (np.abs(rows).mean(1) * 2 / int(levels.max()) + 1e-6).astype(np.float32)
    spec = replace(entry.spec, num_bits=bits)
    return replace(entry, spec=spec, levels=levels, codes=None, scale=scale.reshape(np.shape(entry.scale)))
