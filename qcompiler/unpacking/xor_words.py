"""Operators that decode weights of a fraction of a bit: one stream for all weights of a rate, decoded at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.xor_weights import XorRate
from qcompiler.quant.levels import Levels
from qcompiler.unpacking.fixed_rate import xor_table
from qcompiler.unpacking.writer import Unpacker

_I32 = ir.DataType.INT32.value
BYTES_A_WEIGHT = 12
"""About what decoding takes while a session loads; the largest array takes LARGEST."""
LARGEST = 4


def from_words(
    writer: Unpacker, rate: XorRate, weights: Sequence[tuple[NDArray[np.uint8], int, Levels]], opset: int
) -> list[ir.Value]:
    """Return the codes of weights as operators compute them: int8 of shape (count,) each.

    Args:
        writer: of the graph.
        rate: of all these weights.
        weights: the stored bits of each, uint8 0 or 1 of shape (slices, INPUTS), how many weights they make, and
            their two levels.
        opset: of the model.
    """
    streams = np.concatenate([rate.streams(stored) for stored, _, _ in weights])
    symbols = writer.node("Cast", writer.stored(streams), to=_I32)
    parts = []
    for lag in range(rate.network.registers + 1):
        newest = writer.constant(np.asarray(rate.network.registers - lag))
        column = writer.node("Gather", symbols, newest, axis=1)
        parts.append(writer.node("Gather", xor_table(writer, rate.network, lag), column))
    bits = reduce(lambda first, second: writer.node("Xor", first, second), parts)
    flat = writer.node("Reshape", writer.node("Cast", bits, to=_I32), writer.constant(np.asarray([-1])))
    pieces = writer.split(flat, _lengths(rate, weights), opset)
    used = [piece for piece, length in zip(pieces, _uses(rate, weights), strict=True) if length]
    return [
        writer.node("Gather", writer.constant(levels), piece)
        for piece, (_, _, levels) in zip(used, weights, strict=True)
    ]


def _lengths(rate: XorRate, weights: Sequence[tuple[NDArray[np.uint8], int, Levels]]) -> list[int]:
    """Return the lengths of all weights and of what is open behind each, without those that are 0."""
    both = ((count, len(stored) * rate.outputs - count) for stored, count, _ in weights)
    return [length for pair in both for length in pair if length]


def _uses(rate: XorRate, weights: Sequence[tuple[NDArray[np.uint8], int, Levels]]) -> list[bool]:
    """Return for every length whether it is that of a weight."""
    found = []
    for stored, count, _ in weights:
        found += [True, False] if len(stored) * rate.outputs > count else [True]
    return found
