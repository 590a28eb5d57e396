"""Fixed-to-fixed streams as a file for decoders outside of this package; ``docs/f2f-format.md`` is its description."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from qcompiler.codec.bits import packed_bytes
from qcompiler.codec.fixed_to_fixed import Encrypted, Geometry
from qcompiler.codec.gaps import unpack_gaps
from qcompiler.codec.xor_code import MAX_OUTPUTS, XorNetwork
from qcompiler.errors import InputError

MAGIC = b"QF2F"
VERSION = 1
INTERLEAVED = 1
_HEADER = struct.Struct("<4sHBBQHHIIIII")
"""Magic, version, flags, registers; weights; outputs, planes, segments, blocks; stored and inverted planes; bytes of
corrections."""
_SUM = struct.Struct("<I")


def to_bytes(stored: Encrypted) -> bytes:
    """Return a stored tensor as the content of a file."""
    geometry = stored.geometry
    header = _HEADER.pack(
        *(MAGIC, VERSION, INTERLEAVED * geometry.interleaved, stored.network.registers, geometry.count),
        *(geometry.outputs, stored.planes, geometry.segments, geometry.blocks),
        *(sum(1 << plane for plane in planes) for planes in (stored.stored, stored.inverted)),
        stored.corrections.size,
    )
    rows = stored.network.rows.astype("<u4")
    parts = (rows, stored.mask, stored.streams, stored.corrections)
    content = header + b"".join(part.tobytes() for part in parts)
    return content + _SUM.pack(zlib.crc32(content))


def from_bytes(content: bytes) -> Encrypted:
    """Return the tensor that a file holds.

    Raises:
        InputError: the file is of another kind or version, cut off, damaged, or contradicts itself.
    """
    if len(content) < _HEADER.size + _SUM.size or content[: len(MAGIC)] != MAGIC:
        raise InputError("this is no file of fixed-to-fixed streams: it does not begin with 'QF2F' and a header")
    header = _HEADER.unpack_from(content)
    _, version, flags, registers, count, outputs, planes, segments, blocks, stored, inverted, corrections = header
    if version != VERSION or flags & ~INTERLEAVED:
        raise InputError(f"fixed-to-fixed streams of version {version} with flags {flags}; known is version {VERSION}")
    geometry = Geometry(count, outputs, segments, blocks, bool(flags & INTERLEAVED))
    if not _plausible(geometry, planes, registers, stored | inverted):
        raise InputError("the header of the fixed-to-fixed streams contradicts itself: the file is damaged")
    streams = (stored.bit_count(), segments, registers + blocks)
    sizes = (4 * outputs, packed_bytes(count, 1), streams[0] * streams[1] * streams[2], corrections)
    if len(content) != _HEADER.size + sum(sizes) + _SUM.size:
        wanted = _HEADER.size + sum(sizes) + _SUM.size
        raise InputError(f"the fixed-to-fixed streams have {len(content)} bytes, their header says {wanted}: cut off?")
    if zlib.crc32(content[: -_SUM.size]) != _SUM.unpack(content[-_SUM.size :])[0]:
        raise InputError("the checksum of the fixed-to-fixed streams is another: the file is damaged")
    rows, mask, stream, gaps = _cut(content, sizes)
    made = Encrypted(
        network=XorNetwork(registers, rows.view("<u4").astype(np.uint32)),
        geometry=geometry,
        planes=planes,
        stored=_planes_of(stored),
        inverted=_planes_of(inverted),
        mask=mask,
        streams=stream.reshape(streams),
        corrections=gaps,
    )
    _check_corrections(made)
    return made


def _plausible(geometry: Geometry, planes: int, registers: int, named: int) -> bool:
    sizes = geometry.count, geometry.segments, geometry.blocks, planes
    return (
        min(sizes) > 0
        and 0 < geometry.outputs <= MAX_OUTPUTS
        and planes <= 32
        and registers <= 3
        and not named >> planes
        and geometry.count <= geometry.places <= 2 * geometry.count + 4 * geometry.outputs * (1 + geometry.segments)
    )


def _check_corrections(stored: Encrypted) -> None:
    positions = unpack_gaps(stored.corrections)
    if positions.size and int(positions[-1]) >= int(stored.kept.sum()) * stored.planes:
        raise InputError("a correction of the fixed-to-fixed streams lies behind the last weight: the file is damaged")


def _cut(content: bytes, sizes: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    whole = np.frombuffer(content, np.uint8)
    ends = _HEADER.size + np.cumsum(sizes)
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _planes_of(mask: int) -> tuple[int, ...]:
    return tuple(plane for plane in range(mask.bit_length()) if mask >> plane & 1)
