"""Products whose weights have a scale for every block of inputs: what a plan says of them, and when they fit.

The runtime's operator is MatMulNBits of the domain com.microsoft.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from qcompiler.errors import QCompileError
from qcompiler.model.weights import scales_operands
from qcompiler.plan import CompressionPlan, Precision, TensorPlan
from qcompiler.protocols import MatMulCost, MatMulForm, Target

DOMAIN = "com.microsoft"
OPERATOR = "MatMulNBits"
RUN_BITS = (2, 4, 8)
"""Widths of weights that the operator knows."""
SMALLEST_BLOCK = 16
_FORM = re.compile(r"(static|dynamic|blockwise (2|4|8) bits, blocks of (\d+), accuracy level ([0-4]))")


class Codes(NamedTuple):
    """How the codes of a planned weight become those of the operator, which are not negative.

    Attributes:
        num_bits: width of the operator's codes.
        offset: what is added to a planned code.
    """

    num_bits: int
    offset: int


def form_of(plan: CompressionPlan, node: str) -> MatMulForm | None:
    """Return the form that was chosen for a product, None where nothing was.

    Raises:
        QCompileError: the plan holds something else there.
    """
    text = plan.choices.get(_key(node))
    if text is None:
        return None
    found = _FORM.fullmatch(text)
    if found is None:
        raise QCompileError(f"the plan's choice '{_key(node)}' is '{text}', which is no form of a product")
    if found[2] is None:
        return MatMulForm(Precision.INTEGER if text == "static" else Precision.DYNAMIC)
    return MatMulForm(Precision.BLOCKWISE, int(found[2]), int(found[3]), int(found[4]))


def with_form(plan: CompressionPlan, node: str, form: MatMulForm) -> CompressionPlan:
    """Return a plan in which a product is to run in a form."""
    text = "static" if form.precision is Precision.INTEGER else form.describe()
    return plan.with_choice(_key(node), text)


def codes_of(entry: TensorPlan, at_least: int = min(RUN_BITS)) -> Codes:
    """Return how a weight's codes are those of the operator, in the fewest bits that hold them.

    Args:
        entry: with a grid.
        at_least: the fewest bits to take.

    Raises:
        QCompileError: the entry has no grid, or its codes have no such form.
    """
    if entry.spec is None:
        raise QCompileError(f"weight '{entry.name}' is planned without a grid")
    first, last = entry.spec.code_range
    if entry.levels is not None:
        first, last = int(entry.levels[0]), int(entry.levels[-1])
    for bits in (b for b in RUN_BITS if b >= at_least):
        half = 1 << (bits - 1)
        if not entry.spec.signed and last < 2 * half:
            return Codes(bits, 0)
        if entry.spec.signed and -half <= first and last < half:
            return Codes(bits, half)
    raise QCompileError(f"weight '{entry.name}' has codes from {first} to {last}, more than {OPERATOR} holds")


def multiplies_matrix(node: ir.Node) -> bool:
    """Return True for a MatMul or Gemm that multiplies what it reads by a constant matrix, as the operator does."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    data, weight = node.inputs[0], node.inputs[1]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2 or scales_operands(node):
        return False
    if weight.const_value.dtype is not ir.DataType.FLOAT:
        return False
    flag = node.attributes.get("transA")
    if node.op_type == "Gemm" and flag is not None and flag.as_int():
        return False
    return data is not None and data.const_value is None and (data.shape is None or len(data.shape) > 1)


def costs_of(target: Target) -> tuple[MatMulCost, ...]:
    """Return what a target's table says of the forms of products; nothing for one that has no such table."""
    known: Callable[[], tuple[MatMulCost, ...]] = getattr(target, "matmul_costs", tuple)
    return known()


def largest_block(wanted: int, inputs: int) -> int:
    """Return the wanted block size, or a smaller one where the inputs do not fill it.

    Args:
        wanted: a power of 2, at least 16.
        inputs: of the product.
    """
    while wanted > SMALLEST_BLOCK and wanted > inputs:
        wanted //= 2
    return wanted


def _key(node: str) -> str:
    return f"form of {node}"


def transposed(node: ir.Node) -> bool:
    """Return True for a Gemm whose weight stands as (outputs, inputs)."""
    flag = node.attributes.get("transB")
    return node.op_type == "Gemm" and flag is not None and bool(flag.as_int())
