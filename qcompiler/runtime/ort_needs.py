"""What integer kernels ask of a node beyond the grids: the conditions that rows of a capability table name."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qcompiler.errors import QCompileError
from qcompiler.model.weights import has_row_bias, is_float_constant, scales_operands
from qcompiler.plan import Precision
from qcompiler.protocols import OpRule

FEW_CHANNELS = 8


def unmet_need(node: ir.Node, rule: OpRule) -> str:
    """Return why a node does not meet what a table row asks, or "".

    Raises:
        QCompileError: the row names a condition that does not exist.
    """
    if rule.precision is Precision.MOVE and sum(bool(v.name) for v in node.outputs) > 1:
        return "its second output is used"
    if rule.needs and rule.needs not in NEEDS:
        known = ", ".join(NEEDS)
        raise QCompileError(f"the target's row for {rule.op_type} needs {rule.needs!r}; known are {known}")
    checks = (NEEDS.get(rule.needs), OPERANDS.get(node.op_type))
    return next((why for check in checks if check is not None and (why := check(node))), "")


def _two_computed_inputs(node: ir.Node) -> str:
    if any(v is None or v.const_value is not None for v in node.inputs):
        return "a constant operand blocks the integer kernel"
    return "both operands are the same value" if node.inputs[0] is node.inputs[1] else ""


def _many_channels(node: ir.Node) -> str:
    weight, groups = node.inputs[1], node.attributes.get("group")
    if weight is None or weight.const_value is None or (groups is not None and groups.as_int() != 1):
        return ""
    few = weight.const_value.shape.numpy()[1] < FEW_CHANNELS
    return "with so few input channels float takes fewer instructions on this profile" if few else ""


def _nearest(node: ir.Node) -> str:
    mode = node.attributes.get("mode")
    plain = mode is None or mode.as_string() == "nearest"
    return "" if plain else "only nearest-neighbor Resize moves quantized data"


def _constant_zero(node: ir.Node) -> str:
    mode = node.attributes.get("mode")
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is not None and mode.as_string() not in ("constant", "edge", "reflect"):
        return "padding mode is not known to move quantized data"
    if fill is not None and (fill.const_value is None or float(fill.const_value.numpy()) != 0.0):
        return "padding with a value other than 0 has no exact code"
    return ""


def _computed_inputs(node: ir.Node) -> str:
    constant = any(v is None or is_float_constant(v) for v in node.inputs)
    return "a constant operand blocks the integer kernel" if constant else ""


def _product(node: ir.Node) -> str:
    data, weight = node.inputs[:2]
    if data is None or data.const_value is not None:
        return "its input is constant"
    empty = weight is None or weight.const_value is None or weight.const_value.size == 0
    return "its weights are empty" if empty else ""


def _layer(node: ir.Node) -> str:
    return _product(node) or ("" if has_row_bias(node) else "its bias is not one constant per channel")


def _gemm(node: ir.Node) -> str:
    if scales_operands(node):
        return "Gemm with alpha or beta other than 1 has no integer kernel"
    attribute = node.attributes.get("transA")
    transposed = attribute is not None and bool(attribute.as_int())
    return "transposed input" if transposed else _layer(node)


NEEDS: dict[str, Callable[[ir.Node], str]] = {
    "two computed inputs": _two_computed_inputs,
    "8 input channels": _many_channels,
    "nearest": _nearest,
    "constant zero": _constant_zero,
}
"""Condition that a row may name -> function that returns why a node does not meet it, or ""."""

OPERANDS: dict[str, Callable[[ir.Node], str]] = {
    "Conv": _layer,
    "Gemm": _gemm,
    "MatMul": _product,
    "Concat": _computed_inputs,
}
"""Operator -> what its kernels ask of the operands, whatever the target."""
