"""What the constants of a lowered graph decode to, held against the plan: lowering wrote what was decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.blockwise import OPERATOR, transposed
from qcompiler.codec.bits import BYTE_BITS, unpack
from qcompiler.lowering import aligned_channels, weight_codes
from qcompiler.model.edit import all_nodes, constant_of
from qcompiler.model.folding import folded
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.quant.grid import along, dequantize, spread

COMPUTE = frozenset({"Conv", "Gemm", "MatMul"})
STORED = frozenset({Precision.INTEGER, Precision.DYNAMIC, Precision.BLOCKWISE})


def differing_constant(before: ir.Model, after: ir.Model, plan: CompressionPlan) -> str:
    """Return which planned value a lowered graph holds otherwise, in words, or "" if every one is as planned.

    Weights must decode to exactly the plan's values, biases to the planned ones within half a step, and
    activations must have the planned scale and zero point. What is not lowered yet is not looked at; what an earlier
    pass has lowered must decode to the same values again, however it is stored now.

    Args:
        before: the model that was lowered, with float weights.
        after: what a lowering pass made of it; nodes keep their names.
        plan: what it was to write.
    """
    there = {node.name: node for node, _ in all_nodes(after)}
    for node, _ in all_nodes(before):
        lowered = there.get(node.name)
        if lowered is None:
            continue
        for index, value in enumerate(node.inputs):
            entry = plan.tensors.get(value.name or "") if value is not None else None
            weight = constant_of(value) if entry is not None and entry.role is Role.WEIGHT else None
            decoded = _decoded_weight(lowered, index) if weight is not None else None
            channels = aligned_channels(plan, node.name or "")
            if weight is None and _stores_otherwise(node, lowered, index, channels):
                return f"the weight of node '{node.name}' does not decode to its planned values"
            if entry is None or weight is None or decoded is None:
                continue
            planned = _planned_weight(weight, entry, decoded.dtype)
            if _blockwise_product(lowered) is not None and transposed(node):
                decoded = decoded.T
            if not np.array_equal(decoded, _aligned(planned, channels, decoded.shape)):
                return f"weight '{entry.name}' of node '{node.name}' does not decode to its planned values"
            if index == 1 and not _bias_holds(node, lowered, plan):
                return f"the bias of node '{node.name}' is not the planned one"
    return _differing_grid(after, plan)


def float_weight(model: ir.Model, plan: CompressionPlan) -> str:
    """Return the name of a node that is to run in integers and still has a float weight, "" if there is none.

    The runtime would quantize such a weight by itself, with one scale for the whole tensor.
    """
    for node in model.graph:
        decision = plan.nodes.get(node.name or "")
        if decision is None or decision.precision not in STORED:
            continue
        weight = node.inputs[1] if node.op_type in COMPUTE else None
        if weight is not None and weight.const_value is not None:
            return node.name or ""
    return ""


def _planned_weight(weight: NDArray[Any], entry: TensorPlan, dtype: np.dtype[Any]) -> NDArray[Any]:
    if entry.spec is None or entry.scale is None or entry.zero_point is None:
        return np.zeros(0, dtype)
    codes, (scale, zero_point) = weight_codes(weight, entry), entry.grid(weight.shape)
    if dtype == np.float32:
        return dequantize(codes, scale, zero_point, entry.spec.axis)
    return np.asarray(codes.astype(dtype) * along(scale, entry.spec.axis, codes.ndim).astype(dtype))


def _aligned(weight: NDArray[Any], channels: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a weight with input channels of zeros added, where that was planned and has been written."""
    if not channels or weight.ndim != len(shape) or shape[1] != channels:
        return weight
    return np.pad(weight, [(0, channels - weight.shape[1] if axis == 1 else 0) for axis in range(weight.ndim)])


def _stores_otherwise(node: ir.Node, lowered: ir.Node, index: int, channels: int) -> bool:
    """Return True if a weight that was stored in integers before is stored anew, and decodes to other values."""
    before, after = (_codes_of(n, index) for n in (node, lowered))
    if before is None or before.const_value is None:
        return False
    if after is not None and after.const_value is before.const_value:
        return False
    first, second = (_decoded_weight(n, index) for n in (node, lowered))
    return first is None or second is None or not np.array_equal(_aligned(first, channels, second.shape), second)


def _codes_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return the value that holds the codes of a lowered node's weight, None if it is not stored in integers."""
    if (product := _blockwise_product(node)) is not None:
        return product.inputs[1] if index == 1 else None
    value = node.inputs[index] if index < len(node.inputs) else None
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type == "DequantizeLinear":
        return maker.inputs[0] if maker is not None else None
    if maker.op_type != "Mul" or len(maker.inputs) != 2:
        return None
    cast = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    if cast is not None and cast.op_type == "Cast":
        return cast.inputs[0]
    product = _integer_product(node)
    return product.inputs[1] if product is not None else None


def _decoded_weight(node: ir.Node, index: int) -> NDArray[Any] | None:
    """Return what a lowered node multiplies its input by, None if that is not stored in integers."""
    if (product := _blockwise_product(node)) is not None:
        return _blockwise(product) if index == 1 else None
    value = node.inputs[index] if index < len(node.inputs) else None
    maker = value.producer() if value is not None else None
    if maker is None or value is None:
        return None
    if maker.op_type == "DequantizeLinear":
        return _dequantized(maker)
    parts = [v for v in maker.inputs if v is not None]
    if maker.op_type != "Mul" or len(parts) != 2:
        return None
    cast, scale = parts[0].producer(), folded(parts[1])
    if cast is not None and cast.op_type == "Cast" and scale is not None:
        codes = folded(cast.inputs[0])
        return None if codes is None else np.asarray(codes.astype(scale.dtype) * scale)
    return _dynamic(node, scale)


def _dynamic(node: ir.Node, scale: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return the weight of an integer product whose inputs get their scale at run time."""
    product = _integer_product(node)
    codes = folded(product.inputs[1]) if product is not None else None
    return None if codes is None or scale is None else np.asarray(codes.astype(np.float32) * scale, np.float32)


def _integer_product(node: ir.Node) -> ir.Node | None:
    """Return the MatMulInteger whose result a node scales, None for any other node."""
    cast = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    value = cast.inputs[0] if cast is not None and cast.inputs else None
    product = value.producer() if value is not None else None
    return product if product is not None and product.op_type == "MatMulInteger" else None


def _blockwise_product(node: ir.Node) -> ir.Node | None:
    """Return the MatMulNBits that a node is, or whose product it adds a bias to; None for any other node."""
    value = node.inputs[0] if node.op_type == "Add" and node.inputs else None
    found = value.producer() if value is not None else node
    return found if found is not None and found.op_type == OPERATOR else None


def _blockwise(node: ir.Node) -> NDArray[np.float32] | None:
    """Return the weight of a MatMulNBits, float32 of shape (inputs, outputs)."""
    stored, scale = folded(node.inputs[1]), constant_of(node.inputs[2])
    sizes = (node.attributes.get(name) for name in ("K", "N", "bits", "block_size"))
    inputs, outputs, bits, block = (0 if a is None else a.as_int() for a in sizes)
    if stored is None or scale is None or not outputs or not block:
        return None
    blocks, each = -(-inputs // block), BYTE_BITS // bits
    codes = unpack(stored.reshape(-1), bits, outputs * blocks * block).reshape(outputs, -1)[:, :inputs]
    zeros = constant_of(node.inputs[3]) if len(node.inputs) > 3 else None
    zero = np.full((outputs, blocks), 1 << (bits - 1), np.int32)
    if zeros is not None:
        row = -(-blocks // each) * each
        zero = unpack(zeros.reshape(-1), bits, outputs * row).reshape(outputs, row)[:, :blocks].astype(np.int32)
    scale, zero = (spread(v, 0, block, codes.shape) for v in (scale.reshape(outputs, blocks), zero))
    return dequantize(codes, scale, zero, 0).T


def _dequantized(node: ir.Node) -> NDArray[np.float32] | None:
    """Return what a DequantizeLinear makes of constants, None if its input is computed."""
    codes, scale = folded(node.inputs[0]), constant_of(node.inputs[1])
    zero_point = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes is None or scale is None:
        return None
    axis = node.attributes.get("axis")
    zero = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)
    return dequantize(codes, scale, zero, (1 if axis is None else axis.as_int()) if scale.ndim else None)


def _bias_holds(node: ir.Node, lowered: ir.Node, plan: CompressionPlan) -> bool:
    """Return True if a lowered node adds the bias of the float node with the planned correction."""
    planned = plan.tensors.get(f"{node.name}:bias")
    correction = planned.correction if planned is not None else None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    base = constant_of(value)
    if node.op_type not in ("Conv", "Gemm") or (base is None and (value is not None or correction is None)):
        return True
    expected = (0.0 if base is None else base.astype(np.float64)) + (0.0 if correction is None else correction)
    place = 1 if lowered.op_type == "Add" else 2
    added = lowered.inputs[place] if len(lowered.inputs) > place else None
    maker = added.producer() if added is not None else None
    found = constant_of(added) if maker is None else _dequantized(maker)
    scale = constant_of(maker.inputs[1]) if maker is not None else None
    room = 0.0 if scale is None else scale.astype(np.float64) * 0.5
    # Bias and correction were added in float64 and stored in float32.
    rounding = np.abs(expected) * 2.0**-23 + float(np.finfo(np.float32).tiny)
    return found is not None and bool(np.all(np.abs(found - expected) <= room + rounding))


def _differing_grid(model: ir.Model, plan: CompressionPlan) -> str:
    """Return which activation has another scale or zero point than planned, in words, or ""."""
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            continue
        limits = [u.node for u in node.outputs[0].uses() if u.node.op_type == "Clip"]
        codes = [node.outputs[0], *(n.outputs[0] for n in limits)]
        restored = [u.node for v in codes for u in v.uses() if u.node.op_type == "DequantizeLinear"]
        names = [node.inputs[0].name or "", *(n.outputs[0].name or "" for n in restored)]
        entry = next((e for name in names if (e := plan.activation(name)) is not None), None)
        if entry is None:
            continue
        for end in (node, *restored):
            scale, zero_point = (constant_of(v) for v in (*end.inputs, None)[1:3])
            if not (_equal(scale, entry.scale) and _equal(zero_point, entry.zero_point)):
                return f"activation '{entry.name}' has another scale or zero point than planned"
        last = entry.spec.code_range[1] if entry.spec is not None else None
        if any(constant_of(v) != last for n in limits for v in n.inputs[2:]):
            return f"activation '{entry.name}' has another largest code than planned"
    return ""


def _equal(found: NDArray[Any] | None, planned: NDArray[Any] | None) -> bool:
    return found is not None and planned is not None and np.array_equal(found, planned)
