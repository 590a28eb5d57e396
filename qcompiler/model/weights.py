"""Which constant inputs of which operators are weights, and along which axis their channels lie."""

from __future__ import annotations

import onnx_ir as ir

WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1, 0),
    "MatMul": (1, 0),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
"""Operator -> inputs that hold trained weights when they are constant.

Other constants (biases, grids, anchors, normalization parameters) are small or sensitive, and stay float.
"""

MOVES = frozenset({"Slice", "Concat", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Split", "Identity"})
"""Operators that only move a constant on its way to where it is a weight, as exporters of LSTM write them."""

TOO_SMALL = "too small: storing it in integers saves nothing"

OVERHEAD_BYTES = 160
"""Two nodes, a scale and their names: what storing one tensor in integers costs in the file."""


def weight_operands(node: ir.Node) -> tuple[int, ...]:
    """Return the positions of a node's constant floating-point weights."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    found = []
    if node.op_type in MOVES:
        positions = tuple(range(len(node.inputs))) if node.op_type == "Concat" else (0,)
        if not _moves_to_weight(node, 0):
            return ()
    else:
        positions = WEIGHT_INPUTS.get(node.op_type, ())
    for index in positions:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and is_float_constant(value) and not value.is_graph_output():
            found.append(index)
    return tuple(found)


MAX_MOVES = 6


def _moves_to_weight(node: ir.Node, depth: int) -> bool:
    """Return True if what a data-moving node produces is read as a weight only."""
    uses = [use for output in node.outputs for use in output.uses()]
    if not uses or depth > MAX_MOVES or any(v.is_graph_output() for v in node.outputs):
        return False
    for use in uses:
        if use.node.op_type in MOVES:
            if not _moves_to_weight(use.node, depth + 1):
                return False
        elif use.idx == 0 or use.idx not in WEIGHT_INPUTS.get(use.node.op_type, ()):
            return False
    return True


def is_float_constant(value: ir.Value) -> bool:
    """Return True for an initializer of float32, float16 or bfloat16."""
    if value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return False
    return value.const_value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def channel_axis_of(node: ir.Node, index: int) -> int | None:
    """Return the axis of a weight that gets one scale per index, or None for one scale in all."""
    value = node.inputs[index]
    rank = 0 if value is None or value.const_value is None else len(value.const_value.shape)
    if rank < 2:
        return None
    if node.op_type == "Gemm":
        flag = node.attributes.get("transB" if index == 1 else "transA")
        transposed = flag is not None and bool(flag.as_int())
        return (0 if transposed else 1) if index == 1 else (1 if transposed else 0)
    if node.op_type == "MatMul":
        return rank - 1 if index == 1 else rank - 2
    if node.op_type == "ConvTranspose" or node.op_type in ("LSTM", "GRU", "RNN"):
        return 1
    return 0


def saved_bytes(value: ir.Value, axis: int | None) -> int:
    """Return how many bytes 8-bit storage of a constant saves in the file; negative if it costs."""
    tensor = value.const_value
    if tensor is None:
        return 0
    channels = 1 if axis is None else tensor.shape.numpy()[axis]
    return int(tensor.size * (tensor.dtype.itemsize - 1)) - 4 * channels - OVERHEAD_BYTES


def has_row_bias(node: ir.Node) -> bool:
    """Return True if a Conv or Gemm has no bias, or one constant value per output channel."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return True
    channels, tensor = channel_axis_of(node, 1), bias.const_value
    weight = node.inputs[1].const_value if node.inputs[1] is not None else None
    if tensor is None or weight is None or channels is None or bias.is_graph_input():
        return False
    return tensor.size == weight.shape.numpy()[channels] == (tensor.shape[-1] if len(tensor.shape) else 1)


def scales_operands(node: ir.Node) -> bool:
    """Return True for a Gemm that multiplies its product or its bias by a factor."""
    factors = (node.attributes.get(name) for name in ("alpha", "beta"))
    return node.op_type == "Gemm" and any(f is not None and f.as_float() != 1.0 for f in factors)
