"""What lowering passes share: a weight's integer codes, computed when the file is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompiler.errors import QCompileError
from qcompiler.model.edit import tensor_array
from qcompiler.plan import TensorPlan
from qcompiler.quant.grid import quantize


def lazy_codes(value: ir.Value, entry: TensorPlan) -> Callable[[], ir.TensorProtocol]:
    """Return a function that computes a constant's int8 codes from its float tensor when they are needed."""
    tensor = value.const_value

    def compute() -> ir.TensorProtocol:
        if tensor is None or entry.spec is None or entry.scale is None or entry.zero_point is None:
            raise QCompileError(f"weight '{entry.name}' is planned without a grid")
        if entry.codes is not None:
            return ir.tensor(entry.codes.astype(np.int8))
        weight = np.asarray(tensor_array(tensor), np.float32)
        codes = quantize(weight, entry.scale, entry.zero_point, entry.spec.code_range, entry.spec.axis)
        return ir.tensor(codes.astype(np.int8))

    return compute
