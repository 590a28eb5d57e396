"""The float model with one weight changed: what sensitivities are measured on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.lowering import correct_bias, mean_shift
from qcompiler.model.edit import add_initializer, clone, fresh_name, value_names
from qcompiler.plan import CompressionPlan, Role, TensorPlan
from qcompiler.state import State


def with_weight(state: State, nodes: Sequence[ir.Node], name: str, array: NDArray[np.floating]) -> ir.Model:
    """Return the float model with another weight, whose mean error the biases of its layers take back.

    Args:
        state: observed where biases are to be corrected.
        nodes: those that multiply by the weight.
        name: of the weight.
        array: what it becomes, of its shape.
    """
    model = clone(state.model)
    taken = value_names(model)
    users = {node.name for node in nodes}
    dtype = next(n.inputs[1].dtype for n in nodes if n.inputs[1] is not None)
    stored = array if dtype is None else array.astype(dtype.numpy())
    value = add_initializer(model.graph, fresh_name(taken, f"{name}_changed"), stored)
    plan = _corrections(state, nodes, array)
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.name in users and node.inputs[1] is not None and node.inputs[1].name == name:
            node.replace_input_with(1, value)
            correct_bias(model.graph, node, plan, taken)
    return model


def _corrections(state: State, nodes: Sequence[ir.Node], array: NDArray[np.floating]) -> CompressionPlan:
    """Return a plan that takes back the mean error of every layer that reads a changed weight."""
    shifts = {n.name: mean_shift(state, n, array) for n in nodes if n.op_type in ("Conv", "Gemm")}
    entries = (
        TensorPlan(name=f"{name}:bias", role=Role.BIAS, correction=-shift)
        for name, shift in shifts.items()
        if shift is not None
    )
    return CompressionPlan().with_tensors(*entries)
