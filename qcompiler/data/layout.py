"""How the axes of a stored array map to samples, found from its shape and the model's."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from qcompiler.data.dataset import InputSpec
from qcompiler.errors import DataError


class Axes(enum.Enum):
    """What the first axis of a stored array is."""

    ROWS = "as many axes as the input: the first axis is the batch axis"
    STACKED = "one axis more than the input: the first axis counts whole samples"
    SINGLE = "one axis less than the input: one sample without its batch axis"
    CONSTANT = "a scalar for a scalar input: the same value in every sample"


@dataclass(frozen=True, slots=True)
class Layout:
    """How one stored array is cut into samples.

    Attributes:
        axes: what the first axis is.
        rows: entries of the first axis in one sample.
        samples: number of whole samples; None for a constant.
        dropped: rows at the end that fill no whole sample.
    """

    axes: Axes
    rows: int = 1
    samples: int | None = None
    dropped: int = 0


def find_layout(spec: InputSpec, shape: tuple[int, ...], where: str) -> Layout:
    """Return how an array of ``shape`` holds samples of an input.

    Raises:
        DataError: the array has too many or too few axes, no rows, or sizes that the model does not take.
    """
    extra = len(shape) - len(spec.dims)
    if extra == 0 and not shape:
        return Layout(Axes.CONSTANT)
    if extra == 1:
        _check_dims(spec, shape[1:], spec.dims, where)
        layout = Layout(Axes.STACKED, 1, shape[0])
    elif extra == 0:
        _check_dims(spec, shape[1:], spec.dims[1:], where)
        rows = max(1, spec.batch)
        layout = Layout(Axes.ROWS, rows, shape[0] // rows, shape[0] % rows)
    elif extra == -1 and spec.batch == 1:
        _check_dims(spec, shape, spec.dims[1:], where)
        return Layout(Axes.SINGLE, shape[0] if shape else 1, 1)
    else:
        raise DataError(
            f"{where}: input {spec.name!r} has {len(shape)} axes {list(shape)} in the data, the model "
            f"takes {spec}; store the samples along the first axis"
        )
    if not layout.samples:
        need = f"; the model fixes its batch to {layout.rows}" if layout.rows > 1 else ""
        raise DataError(f"{where}: input {spec.name!r} has {shape[0]} rows{need}; give at least {layout.rows}")
    return layout


def _check_dims(spec: InputSpec, found: tuple[int, ...], expected: tuple[int | str | None, ...], where: str) -> None:
    if any(isinstance(e, int) and e != f for f, e in zip(found, expected, strict=True)):
        raise DataError(
            f"{where}: samples of input {spec.name!r} have the sizes {list(found)}, the model takes {spec}; "
            f"preprocess the data to the model's sizes"
        )
