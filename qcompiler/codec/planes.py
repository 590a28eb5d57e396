"""Rows of unequal length, one plane of bytes behind the other: each plane holds only the rows that have it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompileError


def row_order(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the rows with the most bits first, equals in their order: int64, shape (rows,)."""
    return np.argsort(-bits.astype(np.int64), kind="stable")


def row_ranks(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the place of every row in that order, the inverse of ``row_order``: int64, shape (rows,)."""
    ranks = np.empty(bits.size, np.int64)
    ranks[row_order(bits)] = np.arange(bits.size)
    return ranks


def rows_with(bits: NDArray[np.uint8], plane: int) -> int:
    """Return how many rows have a plane, counted from 0."""
    return int(np.count_nonzero(bits > plane))


def pack_planes(codes: NDArray[np.uint8], bits: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
    """Return one array per plane, each with the rows that have it, those with the most bits first.

    Args:
        codes: uint8, shape (rows, planes, bytes); what lies beyond a row's bits is dropped.
        bits: uint8, shape (rows,): planes of every row.

    Returns:
        for every plane uint8 of shape (rows that have it, bytes).

    Raises:
        QCompileError: a row has more bits than there are planes.
    """
    if codes.shape[0] != bits.size or int(bits.max(initial=0)) > codes.shape[1]:
        raise QCompileError(f"codes of shape {codes.shape} do not hold rows of up to {bits.max(initial=0)} bits")
    order = row_order(bits)
    planes = range(int(bits.max(initial=0)))
    return tuple(np.ascontiguousarray(codes[order[: rows_with(bits, p)], p]) for p in planes)


def unpack_planes(planes: Sequence[NDArray[np.uint8]], bits: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Return what ``pack_planes`` stored: uint8, shape (rows, planes, length), zeros beyond a row's bits.

    Raises:
        QCompileError: a plane has another shape than the bits say.
    """
    codes = np.zeros((bits.size, len(planes), length), np.uint8)
    order = row_order(bits)
    for number, plane in enumerate(planes):
        count = rows_with(bits, number)
        if plane.shape != (count, length):
            raise QCompileError(f"plane {number} has shape {plane.shape}, expected {(count, length)}")
        codes[order[:count], number] = plane
    return codes
