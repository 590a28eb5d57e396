"""Operators that decode sparse weights: a mask or gaps, and the values of what was not pruned."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.bits import BYTE_BITS
from qcompiler.codec.sparse_formats import Bitmask, Deltas
from qcompiler.unpacking.numbering import Numbering
from qcompiler.unpacking.writer import Unpacker

_I32 = ir.DataType.INT32.value
_INT32 = np.dtype(np.int32)


def all_zeros(writer: Unpacker, count: int) -> ir.Value:
    """Return int8 of shape (count,), all 0: a weight of which nothing is left."""
    return zeros(writer, count, ir.DataType.INT8)


def from_bitmask(writer: Unpacker, stored: Bitmask, numbers: Numbering) -> ir.Value:
    """Return the codes of a mask and values: int8 of shape (count,)."""
    kept = mask_bits(writer, writer.stored(stored.mask), stored.count)
    values = _values(writer, stored.values, numbers, stored.kept)
    nothing = writer.constant(np.zeros(1, np.int8))
    return writer.node("Gather", writer.node("Concat", nothing, values, axis=0), ranks(writer, kept))


def from_deltas(writer: Unpacker, stored: Deltas, numbers: Numbering) -> ir.Value:
    """Return the codes of gaps and values: int8 of shape (count,)."""
    places = positions(writer, writer.stored(stored.gaps))
    values = _values(writer, stored.values, numbers, stored.gaps.size)
    return writer.node("ScatterElements", zeros(writer, stored.count, ir.DataType.INT8), places, values, axis=0)


def mask_bits(writer: Unpacker, mask: ir.Value, count: int) -> ir.Value:
    """Return the bits of a mask, the lowest of a byte first: int32 0 or 1 of shape (count,)."""
    bytes_ = writer.node("Cast", mask, to=_I32)
    bits = writer.node("Gather", bits_of_numbers(writer, BYTE_BITS), bytes_)
    flat = writer.node("Reshape", bits, writer.constant(np.asarray([-1])))
    if count % BYTE_BITS == 0:
        return flat
    return writer.node("Slice", flat, writer.constant(np.asarray([0])), writer.constant(np.asarray([count])))


def bits_of_numbers(writer: Unpacker, num_bits: int) -> ir.Value:
    """Return the bits of all numbers of a width, lowest first: int32 of shape (2**num_bits, num_bits)."""
    return writer.once(("bits", bytes([num_bits])), lambda: _new_bits(writer, num_bits))


def ranks(writer: Unpacker, kept: ir.Value) -> ir.Value:
    """Return for each weight which of the unpruned ones it is, from 1 on, and 0 for the others; int32."""
    return writer.node("Mul", writer.node("CumSum", kept, writer.constant(np.asarray(0, _INT32))), kept)


def positions(writer: Unpacker, gaps: ir.Value, dtype: ir.DataType = ir.DataType.INT32) -> ir.Value:
    """Return the places that gaps lead to, from 0 on; a gap of 0 leads 255 places further."""
    numpy = dtype.numpy()
    one = writer.constant(np.asarray(1, numpy))
    shifted = writer.node("Add", writer.node("Cast", gaps, to=dtype.value), writer.constant(np.asarray(254, numpy)))
    steps = writer.node("Add", writer.node("Mod", shifted, writer.constant(np.asarray(255, numpy))), one)
    return writer.node("Sub", writer.node("CumSum", steps, writer.constant(np.asarray(0, _INT32))), one)


def zeros(writer: Unpacker, count: int, dtype: ir.DataType) -> ir.Value:
    """Return zeros of shape (count,)."""
    value = ir.tensor(np.zeros(1, dtype.numpy()))
    return writer.node("ConstantOfShape", writer.constant(np.asarray([count])), value=value)


def _values(writer: Unpacker, packed: NDArray[np.uint8], numbers: Numbering, count: int) -> ir.Value:
    """Return the codes of packed numbers, int8 of shape (count,)."""
    if numbers.num_bits == BYTE_BITS:
        return writer.stored(packed.view(np.int8))
    found = writer.levels(writer.stored(packed), numbers.every_level(), numbers.num_bits, count)
    return writer.node("Reshape", found, writer.constant(np.asarray([count])))


def _new_bits(writer: Unpacker, num_bits: int) -> ir.Value:
    limits = (writer.constant(np.asarray(n, _INT32)) for n in (0, 1 << num_bits, 1))
    every = writer.node("Reshape", writer.node("Range", *limits), writer.constant(np.asarray([-1, 1])))
    return writer.fields(every, 1, num_bits, _INT32)
