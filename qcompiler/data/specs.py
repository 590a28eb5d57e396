"""What a model says about its inputs, read from the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.dataset import InputSpec
from qcompiler.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return the inputs that must be fed; those with a constant as default are left out.

    Raises:
        DataError: an input is no tensor, or its number of axes or its type is not declared.
    """
    return tuple(_spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def check_outputs(model: ir.Model) -> None:
    """Check that what the model returns can be compared.

    Raises:
        DataError: an output has a type that NumPy and ONNX Runtime do not exchange.
    """
    import onnx_ir as ir

    for value in model.graph.outputs:
        fine = (ir.DataType.UNDEFINED, ir.DataType.FLOAT8E4M3FN)  # the latter comes back as plain bytes
        if not isinstance(value.type, ir.TensorType) or value.type.dtype in fine:
            continue
        if _dtype(value.type.dtype) is None:
            raise DataError(
                f"output {value.name!r} has the type {value.type.dtype}, which NumPy and ONNX Runtime do not "
                "exchange, so results cannot be compared; let the model cast it to float32"
            )


def _spec(value: ir.Value) -> InputSpec:
    import onnx_ir as ir

    if not isinstance(value.type, ir.TensorType):
        kind = "map" if value.type is None else str(value.type)
        raise DataError(
            f"input {value.name!r} is {kind}, not a tensor; such inputs cannot be fed: export the model with tensors"
        )
    if value.shape is None or value.name is None:
        raise DataError(f"input {value.name!r} declares no number of axes; declare its shape in the model")
    dtype = _dtype(value.type.dtype)
    if dtype is None:
        raise DataError(
            f"input {value.name!r} has the type {value.type.dtype}, which NumPy and ONNX Runtime do not exchange; "
            "let the model take float32 and cast inside"
        )
    dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return InputSpec(value.name, dtype, dims)


def _dtype(type_: ir.DataType) -> np.dtype[Any] | None:
    """Return NumPy's own type for an element type of ONNX, None where it has none, as for bfloat16 and int4."""
    try:
        dtype = type_.numpy()
    except TypeError:
        return None
    return dtype if dtype.isbuiltin == 1 else None
