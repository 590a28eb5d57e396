"""What a model says about its inputs, read from the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def _spec(value: ir.Value) -> InputSpec:
    import onnx_ir as ir

    if not isinstance(value.type, ir.TensorType):
        raise DataError(f"input {value.name!r} is {value.type}, not a tensor; such inputs cannot be fed")
    if value.shape is None or value.name is None:
        raise DataError(f"input {value.name!r} declares no number of axes; declare its shape in the model")
    try:
        dtype = value.type.dtype.numpy()
    except TypeError as error:
        raise DataError(
            f"input {value.name!r} has the type {value.type.dtype}, which NumPy cannot hold"
        ) from error
    dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return InputSpec(value.name, dtype, dims)
