"""Second moments by head of attention, and rotary embeddings taken back out of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.gram import Float64, symmetric

Floating = NDArray[np.floating]


class HeadAccumulator:
    """Sums x x^T per head, in float64 and in the order in which they come.

    Args:
        heads / size: of the matrices.
    """

    def __init__(self, heads: int, size: int) -> None:
        self._second, self._count = np.zeros((heads, size, size)), 0

    def add_moment(self, moment: Float64, count: int) -> None:
        """Add the sum of x x^T over so many vectors, shape (heads, size, size)."""
        self._second += moment
        self._count += count

    def add_head(self, head: int, vectors: Float64) -> None:
        """Add vectors of shape (count, size) to one head; ``counted`` says for all how many they are."""
        self._second[head] += vectors.T @ vectors

    def counted(self, count: int) -> None:
        """Count vectors that were added head by head."""
        self._count += count

    @property
    def count(self) -> int:
        """How many vectors were seen."""
        return self._count

    def result(self) -> Float64:
        """Return the means, float64 of shape (heads, size, size); 0 without any vector."""
        return symmetric(self._second / max(self._count, 1))


def rotation_matrices(cos: Floating, sin: Floating, size: int, *, interleaved: bool, halved: bool) -> Float64:
    """Return what a rotary embedding does at every position, float64 of shape (positions, size, size).

    Args:
        cos: shape (positions, dimensions), or (positions, dimensions / 2) if ``halved``. Dimensions beyond them stay
            as they are.
        sin: of the same shape.
        size: of a head.
        interleaved: pairs are (2i, 2i + 1) instead of (i, i + dimensions / 2).
        halved: one entry per pair.

    Source: Su et al., "RoFormer" (2021), equation 15.
    """
    half = cos.shape[1] if halved else cos.shape[1] // 2
    pairs = np.arange(half)
    first, second = (2 * pairs, 2 * pairs + 1) if interleaved else (pairs, pairs + half)
    place = (pairs, pairs) if halved else (first, second)
    found = np.broadcast_to(np.eye(size), (len(cos), size, size)).copy()
    found[:, first, first], found[:, second, second] = cos[:, place[0]], cos[:, place[1]]
    found[:, first, second], found[:, second, first] = -sin[:, place[0]], sin[:, place[1]]
    return found


def rotated_back(moment: Float64, rotations: Float64) -> Float64:
    """Return the mean over positions of R^T G R, shape (heads, size, size).

    With R the rotation at a position, an error e of a query changes its logits by R e times the rotated keys, so that
    R^T G R is what it costs there. The mean over positions treats positions and inputs as independent.

    Args:
        moment: G of rotated vectors, shape (heads, size, size).
        rotations: shape (positions, size, size), at least one.

    Source: Kim et al., "BoA" (2025), for rotary embeddings.
    """
    total = np.zeros_like(moment)
    for rotation in rotations:
        total += rotation.T @ moment @ rotation
    return symmetric(total / len(rotations))
