"""From a table and what its rows are worth to codes: every row at every width first, then each at its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.bits import pack
from qcompiler.codec.planes import pack_planes, row_order, rows_with
from qcompiler.quant.row_bits import RowAllocation, best_bits
from qcompiler.quant.rows import (
    CHUNK,
    GROUP,
    EncodedRows,
    Rows,
    encode_grid,
    encode_signs,
    encode_words,
    error_power,
    learn_words,
    padded,
)
from qcompiler.quant.transform import (
    TRANSFORM_BITS,
    chance_gain,
    coding_gain,
    covariance,
    exact_words,
    integer_transform,
)
from qcompiler.row_codes import RowCodes, RowKind, transform_bytes

LARGEST_BLOCK, SMALLEST_BLOCK = 128, 16
"""Columns that share a scale on a grid: powers of two that the runtime takes."""
_SCALE_BYTES = 2
_AT_A_TIME = 16 * CHUNK

Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class RowProblem:
    """One table and what an error in it costs.

    Attributes:
        table: float32, shape (rows, columns).
        importance: float64, shape (rows,): cost of one unit of error in a row.
        metric: float64, shape (columns, columns): what an error of a row is, as a quadratic form.
        kind: words or signs.
        seed: of the words' random start.
        transform: int8, shape (columns, columns): what sums of words are multiplied by, None for nothing.
    """

    table: NDArray[np.float32]
    importance: NDArray[np.float64]
    metric: NDArray[np.float64]
    kind: RowKind = RowKind.PRODUCT
    seed: int = 0
    transform: NDArray[np.int8] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RowCandidates:
    """All rows of a table at every width.

    Attributes:
        first: the fewest bits, that of the first width.
        losses: float64, shape (rows, widths): importance times error, at most that of the width before.
        row_bytes: int64, shape (widths,): planes and scales of one row.
        power: importance times power of the rows without their mean, summed: the loss at 0 bits.
        mean: float32, shape (columns,).
        encoded: width -> the codes of all rows.
        tables: float32, shape (planes, 256, 8): the words; none for signs.
        transform: of the problem.
    """

    kind: RowKind
    first: int
    losses: NDArray[np.float64]
    row_bytes: NDArray[np.int64]
    power: float
    mean: NDArray[np.float32]
    encoded: dict[int, EncodedRows]
    tables: NDArray[np.float32]
    transform: NDArray[np.int8] | None = None

    def fixed_bytes(self) -> int:
        """Return what the table takes beside its rows: words, transform, mean row, and the map of rows."""
        rows = len(self.losses)
        ranks = 0 if len(self.row_bytes) == 1 else rows * (2 if rows <= 1 << 16 else 4)
        return ranks + self.tables.nbytes + self.mean.nbytes + transform_bytes(self.transform)

    def codes(self, bits: NDArray[np.uint8]) -> RowCodes:
        """Return the codes of a table whose rows have these bits: uint8, shape (rows,)."""
        most, columns = int(bits.max(initial=0)), self.mean.size
        groups = -(-columns // GROUP)
        natural = np.zeros((bits.size, most, groups), np.uint8)
        scales = np.zeros((bits.size, most), np.float16)
        for width, found in self.encoded.items():
            chosen = np.flatnonzero(bits == width)
            if not chosen.size:
                continue
            natural[chosen, :width] = found.codes[chosen]
            own = found.scales.shape[1]
            scales[chosen, :own] = found.scales[chosen]
        order = row_order(bits)
        stored = 1 if self.kind is RowKind.PRODUCT else most
        return RowCodes(
            kind=self.kind,
            columns=columns,
            bits=bits,
            planes=pack_planes(natural, bits),
            scales=tuple(scales[order[: rows_with(bits, p)], p : p + 1] for p in range(min(stored, most))),
            tables=self.tables[:most],
            mean=self.mean,
            transform=self.transform if most else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class RowSearch:
    """A table whose rows can still get any number of bytes.

    Attributes:
        name: of the table.
        found: its rows at every width.
        operator_bytes: what decoding it takes in the file beside its arrays.
    """

    name: str
    found: RowCandidates
    operator_bytes: int

    @property
    def fixed_bytes(self) -> int:
        """Return what the table takes beside its rows."""
        return self.found.fixed_bytes() + self.operator_bytes

    @property
    def smallest(self) -> int:
        """Return the bytes of the table with the fewest bits in every row."""
        return self.fixed_bytes + len(self.found.losses) * int(self.found.row_bytes[0])

    @property
    def largest(self) -> int:
        """Return the bytes of the table with the most bits in every row."""
        return self.fixed_bytes + len(self.found.losses) * int(self.found.row_bytes[-1])

    def within(self, budget: int) -> RowAllocation:
        """Return the bits of rows that lose least in so many bytes, everything counted.

        Raises:
            UsageError: fewer than ``smallest``.
        """
        return best_bits(self.found.losses, self.found.row_bytes, self.found.first, budget - self.fixed_bytes)

    def lost(self, bits: NDArray[np.uint8]) -> float:
        """Return the share of the rows' weighted power that is lost with these bits: uint8, shape (rows,)."""
        losses = self.found.losses[np.arange(bits.size), bits.astype(np.int64) - self.found.first]
        return float(losses.sum()) / self.found.power if self.found.power > 0 else 0.0

    def describe(self, bits: NDArray[np.uint8]) -> str:
        """Return the bits of rows in a few words."""
        return f"{bits.mean():.3f} bits a number on average, {self.found.first} to {bits.max(initial=0)} by row"


def candidates(problem: RowProblem, fewest: int, most: int, watch: Watch) -> RowCandidates:
    """Return all rows at every width from ``fewest`` to ``most`` bits, 0 to 8.

    Args:
        problem: the table.
        fewest: bits of the first width.
        most: bits of the last one.
        watch: is told how many rows are done, of how many.
    """
    mean = weighted_mean(problem)
    rows, metric = _coefficients(problem, mean)
    words = problem.kind is RowKind.PRODUCT
    tables = _words(problem, rows, most)
    widths, total = range(fewest, most + 1), (most - fewest + 1) * len(rows)
    power = problem.importance * error_power(rows, metric)
    losses, encoded = np.empty((len(rows), len(widths))), {}
    for number, width in enumerate(widths):
        if width == 0:
            losses[:, number] = power
            continue
        parts = []
        for start in range(0, len(rows), _AT_A_TIME):
            own = rows[start : start + _AT_A_TIME]
            found = encode_words(own, metric, tables[:width]) if words else encode_signs(own, metric, width)
            parts.append(found)
            watch(number * len(rows) + start + len(own), total)
        encoded[width] = EncodedRows(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("codes", "scales", "error"))
        )
        losses[:, number] = problem.importance * encoded[width].error
    losses = np.minimum.accumulate(losses, axis=1)
    groups = rows.shape[1] // GROUP
    sizes = [w * groups + (0 if w == 0 else _SCALE_BYTES * (1 if words else w)) for w in widths]
    own_bytes = np.asarray(sizes, np.int64)
    return RowCandidates(
        problem.kind,
        fewest,
        losses,
        own_bytes,
        float(power.sum()),
        mean,
        encoded,
        tables.astype(np.float32),
        problem.transform,
    )


def _coefficients(problem: RowProblem, mean: NDArray[np.float32]) -> tuple[Rows, NDArray[np.float64]]:
    """Return what codes stand for, of columns that fill bytes, and the metric of its errors."""
    rows = padded(problem.table - mean)
    metric = _padded_metric(problem.metric, rows.shape[1])
    if problem.transform is None:
        return rows, metric
    matrix = problem.transform.astype(np.float64)
    return (rows @ np.linalg.inv(matrix)).astype(np.float32), matrix @ metric @ matrix.T


def _words(problem: RowProblem, rows: Rows, planes: int) -> NDArray[np.float32]:
    """Return the words that rows are coded by: float32, shape (planes, 256, 8), without planes for signs."""
    if problem.kind is not RowKind.PRODUCT or not planes:
        return np.zeros((0, 256, GROUP), np.float32)
    words = learn_words(rows, planes, problem.seed)
    return words if problem.transform is None else exact_words(words, problem.transform)


def with_transform(problem: RowProblem) -> RowProblem:
    """Return a problem with the transform of its rows, or as it was where one would not save the bytes it takes."""
    rows, columns = problem.table.shape
    if problem.kind is not RowKind.PRODUCT or columns % GROUP:
        return problem
    moments = covariance(problem.table - weighted_mean(problem), problem.importance)
    gain = coding_gain(moments) - chance_gain(problem.importance, columns)
    if gain * rows <= TRANSFORM_BITS * columns:
        return problem
    transform = integer_transform(moments, problem.metric, GROUP)
    regular = np.linalg.matrix_rank(transform.astype(np.float64)) == columns
    return replace(problem, transform=transform) if regular else problem


def weighted_mean(problem: RowProblem) -> NDArray[np.float32]:
    """Return the row that leaves the least weighted power when it is taken off: float32, shape (columns,)."""
    weights = problem.importance / problem.importance.sum()
    return np.asarray(weights @ problem.table, np.float32)


def grid_block(columns: int) -> int:
    """Return the largest block of columns that a scale may stand for, 0 where no block divides them."""
    blocks = (2**n for n in range(LARGEST_BLOCK.bit_length() - 1, SMALLEST_BLOCK.bit_length() - 2, -1))
    return next((block for block in blocks if columns % block == 0), 0)


def grid_codes(problem: RowProblem, bits: int) -> RowCodes:
    """Return a table with all rows on grids of 2, 4 or 8 bits; its columns must be a multiple of some block."""
    mean = weighted_mean(problem)
    block = grid_block(mean.size)
    parts = [encode_grid(part, bits, block) for part in _chunks(problem.table - mean)]
    codes, scales, offsets = (np.concatenate(list(column)) for column in zip(*parts, strict=True))
    return RowCodes(
        kind=RowKind.GRID,
        columns=mean.size,
        bits=np.full(len(codes), bits, np.uint8),
        planes=(pack(codes, bits).reshape(len(codes), -1),),
        scales=(scales, offsets),
        tables=np.zeros((0, 256, GROUP), np.float32),
        mean=mean,
    )


def lost_share(problem: RowProblem, codes: RowCodes) -> float:
    """Return the weighted power of the errors, as a share of that of the rows without their mean."""
    left = power = 0.0
    decoded = codes.decode()
    for start in range(0, codes.rows, _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        rows, own = problem.table[part], problem.importance[part]
        left += float(own @ error_power(rows - decoded[part], problem.metric))
        power += float(own @ error_power(rows - codes.mean, problem.metric))
    return left / power if power > 0 else 0.0


def _padded_metric(metric: NDArray[np.float64], columns: int) -> NDArray[np.float64]:
    more = columns - len(metric)
    found = np.pad(metric, (0, more))
    found[range(len(metric), columns), range(len(metric), columns)] = 1.0
    return found


def _chunks(rows: Rows) -> list[Rows]:
    return [rows[i : i + _AT_A_TIME] for i in range(0, len(rows), _AT_A_TIME)]
