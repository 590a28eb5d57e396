"""What lowering passes share: codes computed late, planned bias corrections, planned numbers of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import QCompileError
from qcompiler.model.edit import add_initializer, constant_of, fresh_name, tensor_array
from qcompiler.model.weights import channel_axis_of, has_row_bias, scales_operands
from qcompiler.plan import CompressionPlan, Precision, TensorPlan
from qcompiler.quant.grid import dequantize, quantize
from qcompiler.quant.levels import quantize_to_levels
from qcompiler.state import State


def weight_codes(weight: NDArray[Any], entry: TensorPlan) -> NDArray[np.int8]:
    """Return the integer codes of a weight: the recorded ones, else the nearest rounding on the planned grid.

    Raises:
        QCompileError: the entry has no grid.
    """
    if entry.spec is None or entry.scale is None or entry.zero_point is None:
        raise QCompileError(f"weight '{entry.name}' is planned without a grid")
    if entry.codes is not None:
        return entry.codes.astype(np.int8)
    exact = np.asarray(weight, np.float32)
    scale, zero_point = entry.grid(exact.shape)
    if entry.levels is not None:
        return quantize_to_levels(exact, scale, entry.levels, entry.spec.axis)
    return quantize(exact, scale, zero_point, entry.spec.code_range, entry.spec.axis).astype(np.int8)


def lazy_codes(value: ir.Value, entry: TensorPlan) -> Callable[[], ir.TensorProtocol]:
    """Return a function that computes a constant's int8 codes from its float tensor when they are needed."""
    tensor = value.const_value

    def compute() -> ir.TensorProtocol:
        if tensor is None:
            raise QCompileError(f"planned weight '{entry.name}' is no constant")
        return ir.tensor(weight_codes(tensor_array(tensor), entry))

    return compute


_CODES_OF = "codes of"
"""Key under which a constant names the planned weight whose codes it holds; not written to files."""


def add_codes(graph: ir.Graph, name: str, tensor: ir.TensorProtocol, entry: TensorPlan) -> ir.Value:
    """Add a weight's int8 codes to a graph as a constant that ``weight_of`` knows, and return its value.

    A weight that is used in several ways, such as a table that is looked up and that the output is multiplied by, is
    stored once.
    """
    for value in graph.initializers.values():
        known = value.const_value if weight_of(value) == entry.name else None
        if known is not None and known.dtype is tensor.dtype and known.shape == tensor.shape:
            return value
    value = add_initializer(graph, name, tensor)
    value.meta[_CODES_OF] = entry.name
    return value


def weight_of(value: ir.Value) -> str:
    """Return the name of the planned weight whose int8 codes a constant holds, "" for any other value."""
    return str(value.meta.get(_CODES_OF, ""))


def correct_bias(graph: ir.Graph, node: ir.Node, plan: CompressionPlan, taken: set[str]) -> None:
    """Add the planned correction to a node's bias, which it may not have had; none is planned for most nodes."""
    entry = plan.tensors.get(f"{node.name}:bias")
    if entry is None or entry.correction is None:
        return
    old = node.inputs[2] if len(node.inputs) > 2 else None
    base = np.zeros(entry.correction.shape) if old is None else constant_of(old)
    if base is None or not has_row_bias(node) or np.size(base) != entry.correction.size:
        return
    corrected = (np.asarray(base, np.float64).reshape(-1) + entry.correction).astype(np.float32)
    value = add_initializer(graph, fresh_name(taken, f"{node.name}_b"), corrected)
    node.resize_inputs(3)
    node.replace_input_with(2, value)


def mean_shift(state: State, node: ir.Node, rounded: NDArray[np.floating] | None = None) -> NDArray[np.float64] | None:
    """Return E[(W_q - W) x] of a Conv or Gemm, float64 of shape (output channels,), or None if E[x] is unknown.

    Args:
        state: observed, and with a scale for the node's weight where ``rounded`` is not given.
        node: a node of its model.
        rounded: floating, shape of the weight: W_q; None takes the planned one.
    """
    transposed = node.attributes.get("transA")
    if scales_operands(node) or not has_row_bias(node) or (transposed is not None and transposed.as_int()):
        return None
    data, value = node.inputs[0], node.inputs[1]
    weight = constant_of(value)
    statistics = state.statistics.get(data.name or "") if data is not None else None
    if rounded is None and value is not None and weight is not None:
        rounded = _dequantized(weight, state.plan.tensors.get(value.name or ""))
    if weight is None or rounded is None or statistics is None:
        return None
    error = rounded.astype(np.float64) - weight
    mean = statistics.channel_mean
    if node.op_type == "Gemm":
        rows = error if channel_axis_of(node, 1) == 0 else error.T
        return rows @ mean if rows.shape[1] == mean.size else None
    attribute = node.attributes.get("group")
    groups = attribute.as_int() if attribute is not None else 1
    taps = error.reshape(error.shape[0], error.shape[1], -1).sum(2)
    if taps.shape[1] * groups != mean.size:
        return None
    per_group = np.repeat(mean.reshape(groups, -1), error.shape[0] // groups, axis=0)
    return np.asarray((taps * per_group).sum(1))


def _dequantized(weight: NDArray[Any], entry: TensorPlan | None) -> NDArray[np.float32] | None:
    if entry is None or entry.scale is None or entry.zero_point is None:
        return None
    axis = entry.spec.axis if entry.spec is not None else None
    return dequantize(weight_codes(weight, entry), *entry.grid(weight.shape), axis)


CHANNEL_MULTIPLE = 4
OUTPUT_CHANNELS = 16
"""ONNX Runtime's convolution without im2col takes so many input channels at once, and writes at least so many."""


def alignable(model: ir.Model, plan: CompressionPlan) -> dict[str, int]:
    """Return the integer convolutions that only their input channels keep from the faster kernel.

    Returns:
        node name -> number of input channels that it would have to read.
    """
    found: dict[str, int] = {}
    for node in model.graph:
        decision = plan.nodes.get(node.name or "")
        if node.op_type != "Conv" or decision is None or decision.precision is not Precision.INTEGER:
            continue
        weight, groups = node.inputs[1], node.attributes.get("group")
        if weight is None or weight.const_value is None or (groups is not None and groups.as_int() != 1):
            continue
        entry = plan.tensors.get(weight.name or "")
        if entry is not None and entry.levels is not None:
            continue  # packed weights have no room for channels of zeros
        written, channels = weight.const_value.shape.numpy()[:2]
        if channels % CHANNEL_MULTIPLE and written >= OUTPUT_CHANNELS:
            found[node.name or ""] = -(-channels // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    return found


def aligned_channels(plan: CompressionPlan, node: str) -> int:
    """Return the number of input channels that a convolution is to read, 0 where nothing was decided.

    Raises:
        QCompileError: the plan holds something else than a number there.
    """
    found = plan.choices.get(_channels_key(node), "0")
    if not found.isdecimal():
        raise QCompileError(f"the plan's choice '{_channels_key(node)}' is '{found}'; it must be a number")
    return int(found)


def with_aligned_channels(plan: CompressionPlan, node: str, channels: int) -> CompressionPlan:
    """Return a plan in which a convolution is to read so many input channels."""
    return plan.with_choice(_channels_key(node), str(channels))


def without_idle_channels(plan: CompressionPlan) -> CompressionPlan:
    """Return a plan without numbers of channels for nodes that do not run in integers."""
    idle = {_channels_key(n.name) for n in plan.nodes.values() if n.precision is not Precision.INTEGER}
    return replace(plan, choices={k: v for k, v in plan.choices.items() if k not in idle})


def _channels_key(node: str) -> str:
    return f"input channels of {node}"
