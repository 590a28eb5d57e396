"""Sparse numbers as streams of a fixed rate: every stored byte makes a block of weight bits, whatever they are.

A tensor of numbers of ``planes`` bits is stored as one mask (a bit for every weight that is not 0), one stream for
every plane of bits, and corrections: the places among the unpruned bits where the decoder makes the other bit.
Whatever the encoder finds, the numbers come back exactly.

Source: Park et al., "Encoding Weights of Irregular Sparsity for Fixed-to-Fixed Model Compression", ICLR 2022,
sections 3 and 4. Different here: a block takes weights from all over the tensor (``interleaved``), so that rows of
different density share the rate; planes that are nearly constant are stored as corrections only; and corrections count
places among unpruned bits, not among all bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.block_care import Care
from qcompiler.codec.fast_encoder import LONGEST, WHOLE, encode
from qcompiler.codec.gaps import gap_bytes, pack_gaps, unpack_gaps
from qcompiler.codec.xor_code import SYMBOL_BITS, XorCode, XorNetwork
from qcompiler.errors import QCompileError

Numbers = NDArray[Any]
"""uint8 or uint32."""
Told = Callable[[int, int], None]
"""Called with the bits that are encoded so far, and with all of them."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the weights of a tensor are in the blocks of its streams.

    Attributes:
        count: weights.
        outputs: weights of a block.
        segments: runs of blocks that are decoded by themselves, each with its own registers.
        blocks: blocks of a segment.
        interleaved: block ``t`` holds weights ``t``, ``t + n``, ``t + 2 n`` and so on, where ``n`` is the number of
            all blocks; otherwise weights that follow each other.
    """

    count: int
    outputs: int
    segments: int
    blocks: int
    interleaved: bool = True

    @property
    def places(self) -> int:
        """Return how many weights all blocks have room for; those behind the last weight are open."""
        return self.segments * self.blocks * self.outputs

    def blocked(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Return numbers in the order of weights by segment, block and output; zeros where there is no weight."""
        room = np.zeros(self.places, flat.dtype)
        room[: self.count] = flat
        shape = (self.segments, self.blocks, self.outputs)
        if self.interleaved:
            return room.reshape(self.outputs, -1).T.reshape(shape)
        return room.reshape(shape)

    def flat(self, blocked: NDArray[Any]) -> NDArray[Any]:
        """Return numbers by segment, block and output in the order of weights."""
        rows = blocked.reshape(-1, self.outputs)
        return (rows.T if self.interleaved else rows).reshape(-1)[: self.count]


@dataclass(frozen=True, slots=True, eq=False)
class Encrypted:
    """A tensor as it is stored.

    Attributes:
        network: what decodes.
        geometry: where its weights are.
        planes: bits of a number, 1 to 32.
        stored: the planes that have a stream, rising; the others are constant but for corrections.
        inverted: the planes whose bits are turned round behind the decoder, rising.
        mask: uint8 of shape (ceil(count / 8),): a bit for every weight that is not 0, the lowest bit first.
        streams: uint8 of shape (stored planes, segments, registers + blocks).
        corrections: uint8, ``pack_gaps`` of the wrong bits; bit ``p`` of the ``k``-th unpruned weight is at
            ``k * planes + p``.
    """

    network: XorNetwork
    geometry: Geometry
    planes: int
    stored: tuple[int, ...]
    inverted: tuple[int, ...]
    mask: NDArray[np.uint8]
    streams: NDArray[np.uint8]
    corrections: NDArray[np.uint8]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Return which weights are not 0, bool of shape (count,)."""
        return np.unpackbits(self.mask, count=self.geometry.count, bitorder="little").astype(np.bool_)

    @property
    def table_bytes(self) -> int:
        """Return what the connections of the network take."""
        return self.network.outputs * (self.network.registers + 1)

    def efficiency(self) -> dict[int, float]:
        """Return for every plane with a stream how many percent of its unpruned bits the decoder makes right."""
        kept = int(self.kept.sum())
        wrong = np.bincount(unpack_gaps(self.corrections) % self.planes, minlength=self.planes)
        return {plane: 100.0 * (1.0 - int(wrong[plane]) / kept) if kept else 100.0 for plane in self.stored}

    def memory_reduction(self) -> float:
        """Return how many percent smaller streams and corrections are than all bits; the mask is left out.

        Source: Park et al., section 5, equation of the memory reduction; corrections as they are stored here.
        """
        stored = SYMBOL_BITS * (self.streams.size + self.corrections.size)
        return 100.0 * (1.0 - stored / (self.planes * self.geometry.count))


def density_variation(numbers: Numbers, geometry: Geometry) -> float:
    """Return the coefficient of variation of unpruned weights by block; 0 where there are none."""
    counts = (geometry.blocked(numbers.reshape(-1)) != 0).sum(2)
    mean = float(counts.mean())
    return float(counts.std()) / mean if mean else 0.0


def geometry_for(code: XorCode, count: int, interleaved: bool = True) -> Geometry:
    """Return how a tensor of ``count`` weights is cut into segments of at most LONGEST blocks, all of one length."""
    blocks = -(-count // code.outputs)
    segments = -(-blocks // LONGEST[code.name])
    return Geometry(count, code.outputs, segments, -(-blocks // segments), interleaved)


def even_geometry(code: XorCode, kept: NDArray[np.bool_]) -> Geometry:
    """Return an interleaved geometry whose blocks hold about equally many unpruned weights.

    Where the number of blocks is near a multiple or a fraction of the length of rows, blocks follow columns, and
    columns may differ in density. Up to 2 % more blocks are tried then, and the first number taken that leaves about
    what chance alone would, or else the best.

    Args:
        code: the code to use.
        kept: bool of shape (weights,), not empty.
    """
    first, share = geometry_for(code, kept.size), float(kept.mean())
    chance = ((1 - share) / (share * code.outputs)) ** 0.5 if share else 0.0
    best, least = first, np.inf
    for more in range(1 + max(2, first.blocks // 50)):
        tried = replace(first, blocks=first.blocks + more)
        variation = density_variation(kept, tried)
        if variation < 0.98 * least:
            best, least = tried, variation
        if least <= 1.02 * chance:
            break
    return best


def encrypt(
    numbers: Numbers,
    planes: int,
    code: XorCode,
    *,
    interleaved: bool = True,
    threads: int = 1,
    told: Told | None = None,
) -> Encrypted:
    """Return a tensor as streams of a fixed rate; the same bytes for every number of threads.

    Args:
        numbers: uint8 or uint32, any shape, not empty, each below ``2**planes``; 0 is a pruned weight.
        planes: bits of a number, 1 to 32.
        code: the code to use.
        interleaved: let a block take weights from all over the tensor.
        threads: how many parts are encoded at a time.
        told: called after every part, from the thread that calls this.

    Raises:
        QCompileError: there is no number, or one does not fit in its bits.
    """
    flat = np.ascontiguousarray(numbers).reshape(-1)
    if not flat.size or not 1 <= planes <= 32 or int(flat.max()) >> planes:
        raise QCompileError(
            f"{flat.size} numbers of {planes} bits cannot be encoded: none, or too large for their bits"
        )
    kept = flat != 0
    geometry = even_geometry(code, kept) if interleaved else geometry_for(code, flat.size, interleaved=False)
    stored, inverted = _plane_kinds(flat[kept], planes, geometry, code.registers)
    turned = np.where(kept, flat ^ flat.dtype.type(sum(1 << plane for plane in inverted)), flat), kept
    streams = np.zeros((len(stored), geometry.segments, code.registers + geometry.blocks), np.uint8)
    for segment, which, symbols in _encoded(code, stored, geometry, turned, max(1, threads)):
        streams[which, segment] = symbols
        if told is not None:
            done = segment * len(stored) + which.stop
            told(done * geometry.blocks * geometry.outputs, len(stored) * geometry.places)
    made = Encrypted(
        code.network, geometry, planes, stored, inverted, np.packbits(kept, bitorder="little"), streams, _no_gaps()
    )
    wrong = (_decoded(made) ^ flat)[kept]
    bits = (wrong[:, None] >> np.arange(planes, dtype=flat.dtype)) & flat.dtype.type(1)
    corrections = pack_gaps(np.flatnonzero(bits.reshape(-1)))
    return Encrypted(made.network, geometry, planes, stored, inverted, made.mask, streams, corrections)


def decrypt(stored: Encrypted) -> Numbers:
    """Return the numbers of a stored tensor, uint8 (uint32 above 8 planes) of shape (count,).

    Raises:
        QCompileError: a correction is behind the last weight.
    """
    numbers, kept = _decoded(stored), stored.kept
    positions = unpack_gaps(stored.corrections)
    if positions.size:
        weights = np.flatnonzero(kept)
        if int(positions[-1]) >= weights.size * stored.planes:
            raise QCompileError("a correction lies behind the last weight: the corrections or the mask are damaged")
        flips = np.left_shift(1, positions % stored.planes, dtype=np.int64).astype(numbers.dtype)
        np.bitwise_xor.at(numbers, weights[positions // stored.planes], flips)
    return np.where(kept, numbers, numbers.dtype.type(0))


def _decoded(stored: Encrypted) -> Numbers:
    """Return what the decoder makes, uncorrected and with any number where a weight was pruned."""
    dtype = np.dtype(np.uint8 if stored.planes <= SYMBOL_BITS else np.uint32)
    geometry = stored.geometry
    total = np.zeros((geometry.segments, geometry.blocks, geometry.outputs), dtype)
    for number, plane in enumerate(stored.stored):
        for segment in range(geometry.segments):
            total[segment] |= stored.network.decode(stored.streams[number, segment]).astype(dtype) << dtype.type(plane)
    total ^= dtype.type(sum(1 << plane for plane in stored.inverted))
    return geometry.flat(total).copy()


def _plane_kinds(
    values: Numbers, planes: int, geometry: Geometry, registers: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which planes get a stream, and which are inverted: those with more ones than zeros.

    A plane that corrections alone make smaller gets no stream; a constant one takes nothing then.
    Source: Park et al., section 4.2 (inverting).
    """
    stored, inverted = [], []
    stream = geometry.segments * (registers + geometry.blocks)
    for plane in range(planes):
        ones = int(np.count_nonzero(values & values.dtype.type(1 << plane)))
        if 2 * ones > values.size:
            inverted.append(plane)
        if gap_bytes(min(ones, values.size - ones), values.size) > stream:
            stored.append(plane)
    return tuple(stored), tuple(inverted)


def _encoded(
    code: XorCode, stored: tuple[int, ...], geometry: Geometry, turned: tuple[Numbers, NDArray[np.bool_]], threads: int
) -> Iterator[tuple[int, slice, NDArray[np.uint8]]]:
    """Yield (segment, which of the stored planes, their streams), as many segments at a time as there are threads."""
    numbers, kept = (geometry.blocked(array) for array in turned)
    size = max(1, len(stored) if code.name in WHOLE else 1)
    groups = [slice(k, k + size) for k in range(0, len(stored), size)]
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for first in range(0, geometry.segments, threads):
            segments = range(first, min(first + threads, geometry.segments))
            cares = [_care(numbers[k], kept[k], stored) for k in segments]
            parts = [(segment, care, which) for segment, care in zip(segments, cares, strict=True) for which in groups]
            made = pool.map(lambda part: encode(code, part[1].of_planes(part[2])), parts)
            for (segment, _, which), symbols in zip(parts, made, strict=True):
                yield segment, which, symbols


def _care(numbers: Numbers, kept: NDArray[np.bool_], planes: tuple[int, ...]) -> Care:
    """Return what the streams of a segment are to match; arrays are of shape (blocks, outputs)."""
    places = np.flatnonzero(kept)
    block, row = np.divmod(places, kept.shape[1])
    values = numbers.reshape(-1)[places]
    bits = np.empty((len(planes), places.size), np.uint8)
    for number, plane in enumerate(planes):
        bits[number] = (values >> values.dtype.type(plane)) & values.dtype.type(1)
    return Care(len(numbers), block, row, bits.T)


def _no_gaps() -> NDArray[np.uint8]:
    return np.zeros(0, np.uint8)
