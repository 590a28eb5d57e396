"""One pruned weight in every format that can be decoded when a session loads, and which of them is to be stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.bits import packed_bytes
from qcompiler.codec.fixed_to_fixed import Encrypted
from qcompiler.codec.sparse_formats import (
    BITMASK,
    DELTA,
    DENSE,
    Bitmask,
    Deltas,
    rival_bits,
    to_bitmask,
    to_deltas,
    zipped_bytes,
)
from qcompiler.errors import QCompileError
from qcompiler.unpacking.fixed_rate import from_streams, peak_bytes
from qcompiler.unpacking.numbering import Numbering
from qcompiler.unpacking.sparse import all_zeros, from_bitmask, from_deltas
from qcompiler.unpacking.writer import Unpacker

F2F, AUTO = "f2f", "auto"
FORMATS = (AUTO, F2F, BITMASK, DELTA, DENSE)
"""What may be asked for."""
ONCE_BYTES = {DENSE: 0, BITMASK: 420, DELTA: 370, F2F: 0}
EACH_BYTES = {DENSE: 0, BITMASK: 170, DELTA: 170, F2F: 3800}
"""Format -> about what the operators that decode take in the file: once for all weights, and for each of them."""


@dataclass(frozen=True, slots=True)
class FoldLimits:
    """What decoding may take while a session loads.

    Attributes:
        largest_bytes: of one array. Sessions may be told to compute no larger constant in advance, and some versions
            of ONNX Runtime are by default.
        peak_bytes: of all arrays of a model together: the runtime frees none before it is done.
    """

    largest_bytes: int = 1 << 30
    peak_bytes: int = 4 << 30


@dataclass(slots=True, eq=False)
class SparseWeight:
    """A pruned weight.

    Attributes:
        name: of the planned weight.
        numbers: uint8 in its shape; 0 is a pruned weight.
        numbering: what the numbers stand for.
        streams: fixed-to-fixed, None where it was not encoded.
    """

    name: str
    numbers: NDArray[np.uint8]
    numbering: Numbering
    streams: Encrypted | None = None
    rivals: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rivals = rival_bits(self.numbers, self.numbering.num_bits)

    @property
    def bitmask(self) -> Bitmask:
        """Return the weight as a mask and values."""
        return to_bitmask(self.numbers, self.numbering.num_bits)

    @property
    def deltas(self) -> Deltas:
        """Return the weight as gaps and values."""
        return to_deltas(self.numbers, self.numbering.num_bits)

    def bytes_as(self, name: str) -> int | None:
        """Return what the content takes in a format, None for streams that were not encoded."""
        if name == F2F:
            parts = self.parts(F2F)
            return sum(part.nbytes for part in parts) if parts else None
        return packed_bytes(self.rivals[name], 1)

    def sizes(self, limits: FoldLimits) -> dict[str, int]:
        """Return what the content takes in every format in which a session may decode it."""
        found = {n: self.bytes_as(n) for n in (DENSE, DELTA, BITMASK, F2F) if n == DENSE or self.fits(n, limits, 0)}
        return {name: size for name, size in found.items() if size is not None}

    def parts(self, name: str) -> tuple[NDArray[np.generic], ...]:
        """Return the arrays that a file holds for a format; none for streams that were not encoded."""
        if name == F2F:
            found = self.streams
            if found is None:
                return ()
            taps = found.network.registers + 1
            table = np.stack([(found.network.rows >> np.uint32(8 * lag)).astype(np.uint8) for lag in range(taps)])
            return found.mask, found.streams, found.corrections, table
        if name == BITMASK:
            return self.bitmask.mask, self.bitmask.values
        return (self.deltas.gaps, self.deltas.values) if name == DELTA else (self.numbers,)

    def zipped_as(self, name: str) -> int:
        """Return what the content takes in a format behind zlib."""
        return zipped_bytes(*self.parts(name))

    def load_bytes(self, name: str) -> tuple[int, int]:
        """Return the bytes of the largest array while the weight is decoded, and about those of all arrays."""
        count = self.numbers.size
        if name == F2F and self.streams is not None:
            return peak_bytes(self.streams)
        if name == BITMASK:
            return 4 * count, 19 * count
        return (4 * count, 7 * count) if name == DELTA else (count, 0)

    def fits(self, name: str, limits: FoldLimits, taken: int) -> bool:
        """Return True if a session may decode the weight beside others that take ``taken`` bytes."""
        largest, together = self.load_bytes(name)
        return name == DENSE or (largest <= limits.largest_bytes and taken + together <= limits.peak_bytes)


def smallest_together(sizes: Sequence[Mapping[str, int]]) -> list[str]:
    """Return the format of every weight with which a file is smallest.

    Weights of a format are decoded together, by operators that come once, so that a format which pays for none of
    several small weights may pay for all of them.

    Args:
        sizes: for every weight, the bytes of its content by the formats that it may have.
    """
    shared = sorted({name for size in sizes for name in size if ONCE_BYTES[name]})

    def assigned(used: Collection[str]) -> list[str]:
        usable = [[n for n in size if n in used or not ONCE_BYTES[n]] for size in sizes]
        return [min(names, key=lambda n: size[n] + EACH_BYTES[n]) for names, size in zip(usable, sizes, strict=True)]

    def total(found: Sequence[str]) -> int:
        each = sum(size[name] + EACH_BYTES[name] for name, size in zip(found, sizes, strict=True))
        return each + sum(ONCE_BYTES[name] for name in set(found))

    subsets = (c for count in range(len(shared) + 1) for c in combinations(shared, count))
    return min((assigned(used) for used in subsets), key=total)


def decoded(writer: Unpacker, name: str, weights: Sequence[SparseWeight], opset: int) -> tuple[list[ir.Value], int]:
    """Return the codes of weights of one numbering as operators compute them, and the bytes that are stored for that.

    Args:
        writer: of the graph.
        name: the format; not dense.
        weights: at least one.
        opset: of the model.

    Returns:
        int8 of shape (size,) for every weight.
    """
    if name == F2F:
        return [_streamed(writer, w) for w in weights], sum(w.bytes_as(F2F) or 0 for w in weights)
    known, numbers = weights[0].numbering, np.concatenate([w.numbers.reshape(-1) for w in weights])
    if not numbers.any():
        return [all_zeros(writer, w.numbers.size) for w in weights], 0
    if name == BITMASK:
        mask = to_bitmask(numbers, known.num_bits)
        flat, stored = from_bitmask(writer, mask, known), mask.mask.nbytes + mask.values.nbytes
    else:
        gaps = to_deltas(numbers, known.num_bits)
        flat, stored = from_deltas(writer, gaps, known), gaps.gaps.nbytes + gaps.values.nbytes
    return list(writer.split(flat, [w.numbers.size for w in weights], opset)), stored


def _streamed(writer: Unpacker, weight: SparseWeight) -> ir.Value:
    if weight.streams is None:
        raise QCompileError(f"weight '{weight.name}' has no fixed-to-fixed streams")
    if not weight.numbers.any():
        return all_zeros(writer, weight.numbers.size)
    return from_streams(writer, weight.streams, weight.numbering)
