"""Tables whose rows have unequal numbers of bits: what is stored of them, and exactly which numbers it stands for."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.bits import packed_bytes, unpack
from qcompiler.codec.planes import row_order, rows_with
from qcompiler.errors import QCompileError
from qcompiler.quant.rows import GROUP, sign_words
from qcompiler.quant.transform import TRANSFORM_BITS

MAX_BITS = 8
GRID_BITS = (2, 4, 8)
"""Widths of grids that a runtime looks up in one operator."""


class RowKind(enum.StrEnum):
    """How the numbers of a row are made from its bytes."""

    PRODUCT = "product"
    """A byte names one of 256 learned vectors of 8 numbers; vectors of all planes add up, times the row's scale.
    With a transform, they add up to coefficients, and these are multiplied by a matrix first."""
    BINARY = "binary"
    """A bit is a sign; signs of every plane are multiplied by the row's factor for that plane."""
    GRID = "grid"
    """Every number is an integer of equal width times the scale of its block, plus the offset of its row."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowCodes:
    """A table of shape (rows, columns) in 0 to 8 bits a number, each row with its own number of bits.

    Rows with the most bits come first in ``planes`` and ``scales`` (see ``codec.planes.row_order``), and plane ``p``
    holds the rows that have more than ``p`` bits. A row of 0 bits is the mean row.

    Attributes:
        kind: how bytes become numbers.
        columns: numbers in a row.
        bits: uint8, shape (rows,).
        planes: uint8, shape (rows that have the plane, ceil(columns / 8)) each; a grid has one plane of shape
            (rows, columns * bits / 8), lowest bits first.
        scales: one float16 array of shape (rows with at least 1 bit, groups) for products, one of shape (rows that
            have the plane, groups) per plane for signs; for a grid scales, float32 of shape (rows, blocks), and
            offsets, float16 of shape (rows, 1).
        tables: float32, shape (planes, 256, 8): the vectors that bytes stand for; byte 0 of every plane but the first
            is the zero vector of products. Signs and grids have none.
        mean: float32, shape (columns,): what is added to every row.
        transform: int8, shape (8 * bytes, columns), from -7 to 7: the matrix of products that have one. Their vectors
            lie on a grid that makes its sums exact; see ``quant.transform``.
    """

    kind: RowKind
    columns: int
    bits: NDArray[np.uint8]
    planes: tuple[NDArray[np.uint8], ...]
    scales: tuple[NDArray[np.floating], ...]
    tables: NDArray[np.float32]
    mean: NDArray[np.float32]
    transform: NDArray[np.int8] | None = None

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return self.bits.size

    @property
    def uniform(self) -> bool:
        """Return True if all rows have the same number of bits, at least 1."""
        return bool(self.bits.size and self.bits.min() == self.bits.max() > 0)

    @property
    def rank_dtype(self) -> np.dtype[Any]:
        """Return the smallest integers that hold every place in the order of rows."""
        return np.dtype(np.uint16 if self.rows <= 1 << 16 else np.int32)

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of everything that is stored, the map of rows among them."""
        ranks = 0 if self.uniform else self.rows * self.rank_dtype.itemsize
        arrays = (*self.planes, *self.scales, self.tables, self.mean)
        return ranks + transform_bytes(self.transform) + sum(array.nbytes for array in arrays)

    def plane_tables(self) -> NDArray[np.float32]:
        """Return what the bytes of every plane stand for, float32 of shape (planes, 256, 8)."""
        if self.kind is RowKind.PRODUCT:
            return self.tables
        return np.repeat(sign_words()[None], len(self.planes), axis=0)

    def decode(self) -> NDArray[np.float32]:
        """Return the table that the codes stand for: float32, shape (rows, columns).

        Every operation rounds to float32 in the order in which a lowered graph computes.
        """
        if self.kind is RowKind.GRID:
            return self._grid() + self.mean
        width = -(-self.columns // GROUP) * GROUP
        total = np.zeros((self.rows, width), np.float32)
        for number, (plane, table) in enumerate(zip(self.planes, self.plane_tables(), strict=True)):
            values = np.zeros((self.rows, width), np.float32)
            values[: len(plane)] = table[plane].reshape(len(plane), width)
            if self.kind is RowKind.BINARY:
                values = _scaled(values, self.scales[number])
            total = values if number == 0 else total + values
        if self.kind is RowKind.PRODUCT and self.planes:
            mixed = total if self.transform is None else total @ self.transform.astype(np.float32)
            total = _scaled(mixed, self.scales[0])
        result = np.empty((self.rows, self.columns), np.float32)
        result[row_order(self.bits)] = total[:, : self.columns] + self.mean
        return result

    def _grid(self) -> NDArray[np.float32]:
        bits, scale = int(self.bits[0]), self.scales[0].astype(np.float32)
        codes = unpack(self.planes[0].reshape(-1), bits, self.rows * self.columns).reshape(self.rows, -1)
        whole = codes.astype(np.float32) - np.float32(2 ** (bits - 1))
        values = whole * np.repeat(scale, self.columns // scale.shape[1], axis=1)
        return np.asarray(values + self.scales[1].astype(np.float32), np.float32)

    def check(self) -> None:
        """Check that the arrays fit together.

        Raises:
            QCompileError: one has another shape than the bits say.
        """
        expected = [rows_with(self.bits, p) for p in range(int(self.bits.max(initial=0)))]
        found = [len(plane) for plane in self.planes]
        if self.kind is RowKind.GRID:
            expected = [self.rows]
        if found != expected or self.mean.shape != (self.columns,):
            raise QCompileError(f"a table of {self.rows} rows has planes of {found} rows, expected {expected}")
        width = -(-self.columns // GROUP) * GROUP
        if self.transform is not None and self.transform.shape != (width, self.columns):
            raise QCompileError(
                f"a table of {self.columns} columns has a transform of shape {self.transform.shape}, expected "
                f"{(width, self.columns)}"
            )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything but the kind as arrays by name, for ``from_arrays``."""
        named: dict[str, NDArray[Any]] = {"bits": self.bits, "tables": self.tables, "mean": self.mean}
        if self.transform is not None:
            named["transform"] = self.transform
        named |= {f"plane{number}": array for number, array in enumerate(self.planes)}
        return named | {f"scale{number}": array for number, array in enumerate(self.scales)}

    @classmethod
    def from_arrays(cls, kind: str, arrays: Mapping[str, NDArray[Any]]) -> RowCodes:
        """Return the codes that ``to_arrays`` gave.

        Raises:
            KeyError: an array is missing.
            QCompileError: the arrays do not fit together.
        """
        planes = tuple(arrays[f"plane{n}"] for n in range(sum(k.startswith("plane") for k in arrays)))
        scales = tuple(arrays[f"scale{n}"] for n in range(sum(k.startswith("scale") for k in arrays)))
        mean = arrays["mean"]
        made = cls(
            kind=RowKind(kind),
            columns=mean.size,
            bits=arrays["bits"],
            planes=planes,
            scales=scales,
            tables=arrays["tables"],
            mean=mean,
            transform=arrays.get("transform"),
        )
        made.check()
        return made


def transform_bytes(transform: NDArray[np.int8] | None) -> int:
    """Return what a transform takes in a file."""
    return 0 if transform is None else packed_bytes(transform.size, TRANSFORM_BITS)


def _scaled(values: NDArray[np.float32], scale: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return rows times their scales per group of columns; rows beyond the scales become 0."""
    groups = scale.shape[1]
    factors = np.zeros((len(values), groups, 1), np.float32)
    factors[: len(scale), :, 0] = scale
    parts = values.reshape(len(values), groups, -1)
    return (parts * factors).reshape(values.shape)
