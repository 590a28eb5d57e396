"""The table of operators that run natively in PyTorch; whatever is not in it runs in ONNX Runtime."""

from __future__ import annotations

from qcompiler.executor import ops_index, ops_math, ops_nn, ops_pool, ops_reduce, ops_resize, ops_shape
from qcompiler.executor.operator import Kernel, Maker, Operator
from qcompiler.executor.ops_math import TYPES

OPERATORS: dict[str, Maker] = {
    **ops_index.OPERATORS,
    **ops_math.OPERATORS,
    **ops_nn.OPERATORS,
    **ops_pool.OPERATORS,
    **ops_reduce.OPERATORS,
    **ops_resize.OPERATORS,
    **ops_shape.OPERATORS,
}
"""Operator of the standard domain -> maker of its kernel."""

HOST_INPUTS = ops_shape.HOST_INPUTS
"""Operator -> inputs that are read as Python numbers, and so stay on the CPU."""


def native_kernel(op: Operator) -> Kernel | None:
    """Return the PyTorch kernel of a node, None where there is none for this form of the operator or its types."""
    if op.node.domain not in ("", "ai.onnx") or op.node.op_type not in OPERATORS:
        return None
    types = {v.dtype for v in (*op.node.inputs, *op.node.outputs) if v is not None and v.dtype is not None}
    return OPERATORS[op.node.op_type](op) if types <= set(TYPES) else None
