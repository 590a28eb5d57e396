"""Which conversions of stored values to the model's types are harmless, and doing them with a check."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.dataset import InputSpec
from qcompiler.errors import DataError


def check_castable(found: np.dtype[Any], spec: InputSpec, where: str) -> str:
    """Return a note if values of dtype ``found`` must be converted for an input, "" if not.

    Harmless are float to float, and integers or booleans to anything that holds their values exactly (checked
    when they are read).

    Raises:
        DataError: the conversion would change what the values mean.
    """
    if found == spec.dtype or (spec.dtype.hasobject and found.kind in "US"):
        return ""
    if not _harmless(found, spec.dtype):
        expected = "string" if spec.dtype.hasobject else spec.dtype.name
        raise DataError(
            f"{where}: input {spec.name!r} is {found.name} in the data, the model takes {expected}; "
            f"save the array as {expected}"
        )
    return f"input {spec.name!r}: {found.name} in the data, converted to {spec.dtype.name}"


def cast(values: NDArray[Any], spec: InputSpec, where: str) -> NDArray[Any]:
    """Return the values in the input's dtype, contiguous and in native byte order.

    Raises:
        DataError: NaN, an infinity, or a value that the input's dtype cannot hold.
    """
    if spec.dtype.hasobject:
        return values.astype(object)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(values, dtype=spec.dtype).reshape(values.shape)
    if _is_float(spec.dtype) or spec.dtype.kind == "c":
        _refuse_non_finite(values, converted, spec, where)
    if not _is_float(values.dtype) and values.dtype != spec.dtype and np.any(converted != values):
        low, high = values.min(), values.max()
        raise DataError(
            f"{where}: input {spec.name!r} holds values from {low} to {high}, which {spec.dtype.name} cannot "
            f"hold; check the preprocessing"
        )
    return converted


def _harmless(found: np.dtype[Any], expected: np.dtype[Any]) -> bool:
    if _is_float(found):
        return _is_float(expected)
    return found.kind in "iub" and (expected.kind in "iub" or _is_float(expected))


def _is_float(dtype: np.dtype[Any]) -> bool:
    # bfloat16 and the 8-bit floats of ml_dtypes are of kind "V".
    return dtype.kind == "f" or "float" in dtype.name


def _refuse_non_finite(values: NDArray[Any], converted: NDArray[Any], spec: InputSpec, where: str) -> None:
    finite = np.isfinite(converted)
    if finite.all():
        return
    bad = values[~finite].ravel()[0]
    if np.isfinite(bad):
        raise DataError(
            f"{where}: input {spec.name!r} holds {bad}, too large for {spec.dtype.name}; check the preprocessing"
        )
    raise DataError(
        f"{where}: input {spec.name!r} holds {int((~finite).sum())} NaN or infinite values; remove or replace them"
    )
