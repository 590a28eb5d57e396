"""Codes of two levels whose bits come in slices, each of which is one of a few words: the best words for a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.gram import Float64
from qcompiler.quant.solvers.problem import LayerProblem, Solution, output_error

SWEEPS = 8
LITTLE = 5e-3
"""A sweep that lowers the error by less than this share is the last."""


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """How the bits of a weight are sliced.

    Attributes:
        words: uint8 0 or 1 of shape (words, bits): what a slice may be.
        order: int64 of shape (weights,): place of every stored bit in the rows of the problem, flattened; a slice
            holds as many neighbours in this order as a word has bits, and the last may hold fewer.
    """

    words: NDArray[np.uint8]
    order: NDArray[np.int64]

    def parts(self) -> list[NDArray[np.int64]]:
        """Return the places of every slice."""
        size = self.words.shape[1]
        return [self.order[first : first + size] for first in range(0, self.order.size, size)]


def best_words(problem: LayerProblem, start: Solution, slices: Slices) -> Solution:
    """Return codes whose slices are words and that no other word for a single slice makes better, with their scales.

    Every slice in turn takes the word with the least error of the layer's output, all others fixed, and behind every
    sweep each row's scale is refitted.

    Args:
        problem: with two levels and one scale per row.
        start: whose slices are words.
        slices: how bits are sliced.
    """
    best, least = start, output_error(problem.weight, start, problem.gram)
    for _ in range(SWEEPS):
        found = _refitted(problem, _swept(problem, best, slices))
        reached = output_error(problem.weight, found, problem.gram)
        if reached >= least:
            break
        done, best, least = reached >= least * (1 - LITTLE), found, reached
        if done:
            break
    return best


def _swept(problem: LayerProblem, start: Solution, slices: Slices) -> Solution:
    """Return the solution after every slice has taken its best word, in order."""
    shape = start.codes.shape
    words = slices.words.astype(np.float64)
    low, gap = float(problem.levels[0]), float(problem.levels[1]) - float(problem.levels[0])
    bits = (start.codes.reshape(-1) != problem.levels[0]).astype(np.float64)
    steps = np.broadcast_to(gap * start.scale[:, :, None], shape).reshape(-1)
    gram = np.broadcast_to(problem.gram, (shape[0], shape[2], shape[2]))
    slope = (start.weight() - problem.weight) @ gram
    flat = slope.reshape(-1, shape[2])
    for places in slices.parts():
        rows, columns = np.divmod(places, shape[2])
        groups = rows // shape[1]
        coupling = gram[groups[:, None], columns[:, None], columns[None, :]] * (rows[:, None] == rows[None, :])
        coupling *= steps[places][:, None] * steps[places][None, :]
        linear = steps[places] * flat[rows, columns] - coupling @ bits[places]
        known = words[:, : places.size]
        costs = np.einsum("wi,wi->w", known @ coupling + 2 * linear, known)
        chosen = known[costs.argmin()]
        moved = (chosen - bits[places]) * steps[places]
        bits[places] = chosen
        for row in np.unique(rows[moved != 0]):
            mine = (rows == row) & (moved != 0)
            flat[row] += moved[mine] @ gram[row // shape[1], columns[mine]]
    return replace(start, codes=(low + gap * bits).astype(np.int8).reshape(shape))


def _refitted(problem: LayerProblem, found: Solution) -> Solution:
    """Return the solution with the scale of every row that leaves the least error, at least the smallest allowed."""
    codes: Float64 = found.codes.astype(np.float64)
    pressed = codes @ problem.gram
    power, agreement = (pressed * codes).sum(2), (pressed * problem.weight).sum(2)
    scale = np.where(power > 0, agreement / np.maximum(power, np.finfo(np.float64).tiny), found.scale)
    return replace(found, scale=np.where(scale > 0, np.maximum(scale, problem.floor), found.scale))
