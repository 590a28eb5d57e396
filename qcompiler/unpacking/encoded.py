"""One pruned weight in every format that can be decoded when a session loads, and which of them is to be stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
from qcompiler.unpacking.fixed_rate import from_streams, peak_bytes
from qcompiler.unpacking.numbering import Numbering
from qcompiler.unpacking.sparse import all_zeros, from_bitmask, from_deltas
from qcompiler.unpacking.writer import Unpacker

F2F, AUTO = "f2f", "auto"
FORMATS = (AUTO, F2F, BITMASK, DELTA, DENSE)
"""What may be asked for."""
GRAPH_BYTES = {DENSE: 0, BITMASK: 620, DELTA: 560, F2F: 3800}
"""Format -> about what the operators that decode one tensor take in the file."""


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
            return 4 * count, 18 * count
        return (4 * count, 6 * count) if name == DELTA else (count, 0)

    def fits(self, name: str, limits: FoldLimits, taken: int) -> bool:
        """Return True if a session may decode the weight beside others that take ``taken`` bytes."""
        largest, together = self.load_bytes(name)
        return name == DENSE or (largest <= limits.largest_bytes and taken + together <= limits.peak_bytes)

    def smallest(self, allowed: Callable[[str], bool]) -> str:
        """Return the format of the smallest file among the allowed ones; dense always is."""
        sizes = {name: self.bytes_as(name) for name in (DENSE, DELTA, BITMASK, F2F)}
        known = {name: size + GRAPH_BYTES[name] for name, size in sizes.items() if size is not None}
        return min((name for name in known if name == DENSE or allowed(name)), key=known.__getitem__)

    def decoded(self, writer: Unpacker, name: str) -> ir.Value:
        """Return the codes as operators of a graph compute them: int8 of shape (size,)."""
        if not self.numbers.any():
            return all_zeros(writer, self.numbers.size)
        if name == F2F and self.streams is not None:
            return from_streams(writer, self.streams, self.numbering)
        if name == BITMASK:
            return from_bitmask(writer, self.bitmask, self.numbering)
        return from_deltas(writer, self.deltas, self.numbering)
