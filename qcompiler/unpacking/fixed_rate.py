"""Operators that decode fixed-to-fixed streams: what a few XOR gates do in hardware, once for all weights."""

from __future__ import annotations

from functools import reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.bits import BYTE_BITS
from qcompiler.codec.fixed_to_fixed import Encrypted
from qcompiler.codec.xor_code import SYMBOL_BITS, XorNetwork
from qcompiler.unpacking.numbering import Numbering
from qcompiler.unpacking.sparse import bits_of_numbers, mask_bits, positions, ranks, zeros
from qcompiler.unpacking.writer import Unpacker

_I32, _BOOL, _U8 = ir.DataType.INT32.value, ir.DataType.BOOL.value, ir.DataType.UINT8.value
_INT32 = np.dtype(np.int32)
LARGEST_INT32 = (1 << 31) - 1


def from_streams(writer: Unpacker, stored: Encrypted, numbers: Numbering) -> ir.Value:
    """Return the codes of a stored tensor of 1 to 8 planes: int8 of shape (count,)."""
    kept = mask_bits(writer, writer.stored(stored.mask), stored.geometry.count)
    made = writer.node("Mul", _made(writer, stored), kept)
    if not stored.corrections.size:
        return writer.node("Gather", writer.constant(numbers.every_level()), made)
    flips = writer.node("Gather", _flips(writer, stored), ranks(writer, kept))
    width = writer.constant(np.asarray(1 << stored.planes, _INT32))
    pairs = writer.node("Add", writer.node("Mul", made, width), flips)
    return writer.node("Gather", _corrected_levels(writer, numbers), pairs)


def peak_bytes(stored: Encrypted) -> tuple[int, int]:
    """Return the bytes of the largest array while a tensor is decoded, and about those of all arrays together.

    The runtime keeps every intermediate result until all are computed.
    """
    places, taps = stored.geometry.places, stored.network.registers + 1
    wide = len(stored.stored) * places  # a byte for every bit of the planes
    return max(wide, 4 * places), wide * (2 * taps + 1) + 4 * places * (8 if stored.corrections.size else 5)


def _made(writer: Unpacker, stored: Encrypted) -> ir.Value:
    """Return the numbers that the decoder makes, int32 of shape (count,); any number where a weight was pruned."""
    geometry = stored.geometry
    constant = sum(1 << plane for plane in stored.inverted if plane not in stored.stored)
    if not stored.stored:
        return writer.constant(np.asarray([constant], _INT32))
    bits = writer.node("Cast", _planes(writer, stored), to=_U8)
    flat = writer.node("Reshape", bits, writer.constant(np.asarray([len(stored.stored), geometry.places])))
    weights = writer.constant(np.asarray([[1 << plane for plane in stored.stored]], np.uint8))
    found = writer.node("MatMulInteger", weights, flat)
    if constant:
        found = writer.node("Add", found, writer.constant(np.asarray([constant], _INT32)))
    if geometry.interleaved:
        blocks = writer.node("Reshape", found, writer.constant(np.asarray([-1, geometry.outputs])))
        found = writer.node("Transpose", blocks)
    found = writer.node("Reshape", found, writer.constant(np.asarray([-1])))
    if geometry.places == geometry.count:
        return found
    ends = (writer.constant(np.asarray([n])) for n in (0, geometry.count))
    return writer.node("Slice", found, *ends)


def _planes(writer: Unpacker, stored: Encrypted) -> ir.Value:
    """Return the bits of all stored planes, bool of shape (planes, segments, blocks, outputs)."""
    network, blocks = stored.network, stored.geometry.blocks
    symbols = writer.node("Cast", writer.stored(stored.streams), to=_I32)
    parts = []
    for lag in range(network.registers + 1):
        start = network.registers - lag
        window = symbols
        if network.registers:
            ends = (
                np.asarray([0, 0, start]),
                np.asarray([len(stored.stored), stored.geometry.segments, start + blocks]),
            )
            window = writer.node("Slice", symbols, *map(writer.constant, ends))
        parts.append(writer.node("Gather", xor_table(writer, network, lag), window))
    turned = np.asarray([plane in stored.inverted for plane in stored.stored]).reshape(-1, 1, 1, 1)
    parts += [writer.constant(turned)] if turned.any() else []
    return reduce(lambda first, second: writer.node("Xor", first, second), parts)


def xor_table(writer: Unpacker, network: XorNetwork, lag: int) -> ir.Value:
    """Return what every byte contributes to the outputs, bool of shape (256, outputs)."""
    rows = (network.rows >> np.uint32(SYMBOL_BITS * lag)).astype(np.uint8)
    return writer.once(("xor table", rows.tobytes()), lambda: _new_table(writer, rows))


def _new_table(writer: Unpacker, rows: NDArray[np.uint8]) -> ir.Value:
    numbers = writer.node("Cast", writer.stored(rows.reshape(-1, 1)), to=_I32)
    connected = writer.node("Transpose", writer.fields(numbers, 1, SYMBOL_BITS, _INT32))
    seen = writer.node("MatMul", bits_of_numbers(writer, BYTE_BITS), connected)
    odd = writer.node("Mod", seen, writer.constant(np.asarray(2, _INT32)))
    return writer.node("Cast", odd, to=_BOOL)


def _flips(writer: Unpacker, stored: Encrypted) -> ir.Value:
    """Return which bits of each unpruned weight are corrected, int32 of shape (1 + unpruned,); the first is 0."""
    planes, kept = stored.planes, int(stored.kept.sum())
    dtype = ir.DataType.INT32 if kept * planes <= LARGEST_INT32 else ir.DataType.INT64
    gaps = writer.stored(stored.corrections)
    marks = writer.node("Cast", writer.node("Cast", gaps, to=_BOOL), to=_U8)
    empty = zeros(writer, kept * planes, ir.DataType.UINT8)
    bits = writer.node("ScatterElements", empty, positions(writer, gaps, dtype), marks, axis=0)
    by_weight = writer.node("Reshape", bits, writer.constant(np.asarray([kept, planes])))
    weights = writer.constant((1 << np.arange(planes)).astype(np.uint8).reshape(-1, 1))
    found = writer.node("Reshape", writer.node("MatMulInteger", by_weight, weights), writer.constant(np.asarray([-1])))
    return writer.node("Concat", writer.constant(np.zeros(1, np.int32)), found, axis=0)


def _corrected_levels(writer: Unpacker, numbers: Numbering) -> ir.Value:
    """Return the code of every number with every correction, int8 of shape (4**num_bits,)."""
    levels = numbers.every_level()
    return writer.once(("corrected", levels.tobytes()), lambda: _new_corrected(writer, levels, numbers.num_bits))


def _new_corrected(writer: Unpacker, levels: NDArray[np.int8], num_bits: int) -> ir.Value:
    bits = writer.node("Cast", bits_of_numbers(writer, num_bits), to=_BOOL)
    shapes = ([1 << num_bits, 1, num_bits], [1, 1 << num_bits, num_bits])
    first, second = (writer.node("Reshape", bits, writer.constant(np.asarray(shape))) for shape in shapes)
    turned = writer.node("Cast", writer.node("Xor", first, second), to=_U8)
    pairs = writer.node("Reshape", turned, writer.constant(np.asarray([-1, num_bits])))
    weights = writer.constant((1 << np.arange(num_bits)).astype(np.uint8).reshape(-1, 1))
    number = writer.node("Reshape", writer.node("MatMulInteger", pairs, weights), writer.constant(np.asarray([-1])))
    return writer.node("Gather", writer.constant(levels), number)
