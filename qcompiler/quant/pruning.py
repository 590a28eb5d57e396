"""Which weights of a layer become 0, and how those that stay make up for it: the second-order error of its output.

A layer with weights W and inputs of Gram matrix H gets weights V with a given number of zeros and as little of
tr((V - W) H (V - W)^T) as can be found. All arrays are of shape (groups, rows, inputs), H (groups, inputs, inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompileError
from qcompiler.quant.gram import Float64, inverse_factor

Mask = NDArray[np.bool_]
"""True where a weight stays."""

ROUNDS = 200
"""Rounds of the alternating method at most; its penalty has grown until the mask stands still long before."""
FIRST_PENALTY = 0.1
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""By the share of kept weights that changed in the last rounds: how much the penalty grows."""
CHECKED = 3
"""Rounds between two looks at the mask."""
REFITS = 80
"""Steps of conjugate gradients for the weights that stay."""
CLOSE = 1e-10
"""Relative squared residual at which the weights that stay are as good as they get."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """N kept of every M neighboring inputs of a row, such as 2:4. Inputs are ordered (channels, kernel)."""

    kept: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.of:
            raise QCompileError(f"no such pattern: {self.kept}:{self.of}; of N:M, N is at least 1 and below M")

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.kept}:{self.of}"

    @property
    def sparsity(self) -> float:
        """The share of weights that become 0."""
        return 1.0 - self.kept / self.of


@dataclass(frozen=True, slots=True)
class Choice:
    """How many weights of a layer become 0, and in which places they may.

    Attributes:
        dropped: number of zeros over all groups and rows; ignored with a pattern.
        pattern: zeros are spread like this over the input channels; None is anywhere.
        kernel: weights per input channel, for patterns.
    """

    dropped: int
    pattern: Pattern | None = None
    kernel: int = 1

    def mask(self, score: Float64) -> Mask:
        """Return the mask that keeps the largest scores; of equal ones the later goes.

        Args:
            score: shape (groups, rows, inputs), finite.
        """
        if self.pattern is None:
            return _largest(score.reshape(-1), score.size - self.dropped).reshape(score.shape)
        channels = score.shape[2] // self.kernel
        by_kernel = score.reshape(*score.shape[:2], channels, self.kernel).swapaxes(2, 3)
        whole = channels // self.pattern.of * self.pattern.of  # what is left over stays
        blocks = by_kernel[..., :whole].reshape(*by_kernel.shape[:3], -1, self.pattern.of)
        ranks = np.argsort(np.argsort(-blocks, axis=-1, kind="stable"), axis=-1, kind="stable")
        mask = np.ones(by_kernel.shape, bool)
        mask[..., :whole] = (ranks < self.pattern.kept).reshape(*by_kernel.shape[:3], whole)
        return np.ascontiguousarray(mask.swapaxes(2, 3)).reshape(score.shape)


def _largest(values: Float64, count: int) -> Mask:
    """Return where the ``count`` largest of values of shape (n,) are."""
    if count <= 0 or count >= values.size:
        return np.full(values.size, count > 0)
    edge = np.partition(values, values.size - count)[values.size - count]
    mask = np.asarray(values > edge)
    mask[np.flatnonzero(values == edge)[: count - int(mask.sum())]] = True
    return mask


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """A pruned layer in floating point.

    Attributes:
        weight: float64, 0 where ``mask`` is False.
        mask: where weights stay.
        method: what found it.
    """

    weight: Float64
    mask: Mask
    method: str


def by_magnitude(weight: Float64, choice: Choice) -> Pruned:
    """Return the weights with the smallest magnitudes set to 0, and all others as they were."""
    mask = choice.mask(np.abs(weight))
    return Pruned(weight * mask, mask, "magnitude")


def by_surgeon(weight: Float64, gram: Float64, choice: Choice, block: int = 64) -> Pruned:
    """Return the weights after one sweep over the columns: what goes passes its error on to the columns to come.

    In every block of columns those weights go whose loss raises the error least, w^2 / [H^-1]_jj with the inverse
    over the columns from j on. Afterwards all that stay are refitted together.

    Args:
        weight: float64, shape (groups, rows, inputs).
        gram: positive definite, or it is damped until it is.
        choice: how many go; spread evenly over the blocks.
        block: columns whose mask is chosen at once; a pattern takes whole channels of it.

    Source: Frantar and Alistarh, "SparseGPT" (2023), algorithm 1. Differs: the refit at the end.
    """
    factor = inverse_factor(gram)
    rest, found = weight.copy(), np.zeros_like(weight)
    inputs, mask = weight.shape[2], np.ones(weight.shape, bool)
    if choice.pattern is not None:
        block = choice.pattern.of * choice.kernel * max(1, block // (choice.pattern.of * choice.kernel))
    diagonal, gone = np.einsum("gii->gi", factor)[:, None, :], 0
    for first in range(0, inputs, block):
        last = min(first + block, inputs)
        due = round(choice.dropped * last / inputs) - gone
        here = Choice(due, choice.pattern, choice.kernel)
        gone += due
        mask[..., first:last] = here.mask(np.square(rest[..., first:last] / diagonal[..., first:last]))
        errors = np.empty((*weight.shape[:2], last - first))
        for column in range(first, last):
            found[..., column] = rest[..., column] * mask[..., column]
            error = (rest[..., column] - found[..., column]) / diagonal[..., column]
            rest[..., column + 1 : last] -= error[..., None] * factor[:, None, column, column + 1 : last]
            errors[..., column - first] = error
        rest[..., last:] -= errors @ factor[:, first:last, last:]
    return Pruned(refitted(weight, gram, mask, found), mask, "surgeon")


def by_alternating(
    weight: Float64, gram: Float64, choice: Choice, rounds: int = ROUNDS, start: Mask | None = None
) -> Pruned:
    """Return the weights on which two views agree: one with the least error, and one with the zeros.

    Minimizing the error plus a penalty on the distance of the two, and projecting onto the largest weights, follow
    each other while the penalty grows, until the mask stands still; then all weights that stay are refitted
    together. Inputs are scaled to equal power first. On the networks of the benchmark it leaves a third to two
    thirds of the error of ``by_surgeon``.

    Args:
        weight: float64, shape (groups, rows, inputs).
        gram: positive definite.
        choice: how many go.
        rounds: at most.
        start: a mask to start from; None takes the largest scaled weights.

    Source: Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning" (2024), the iteration of
    section 3.1 and its penalty. Differs: the thresholds by which the penalty grows.
    """
    power = np.sqrt(np.einsum("gii->gi", gram))[:, None, :]
    scaled, alike = weight * power, gram / (power * np.swapaxes(power, 1, 2))
    values, vectors = np.linalg.eigh(alike)
    values, back = np.maximum(values, 0.0)[:, None, :], np.swapaxes(vectors, 1, 2)
    wanted = scaled @ alike
    mask = choice.mask(np.abs(scaled)) if start is None else start
    sparse, dual, penalty = scaled * mask, np.zeros_like(scaled), FIRST_PENALTY
    before, kept = mask, max(int(mask.sum()), 1)
    for number in range(1, rounds + 1):
        free = ((wanted + penalty * sparse - dual) @ vectors / (values + penalty)) @ back
        mask = choice.mask(np.abs(free + dual / penalty))
        sparse = (free + dual / penalty) * mask
        dual = dual + penalty * (free - sparse)
        if number % CHECKED == 0:
            moved = int((mask != before).sum()) / kept
            if moved == 0.0:
                break
            before = mask
            penalty *= next(factor for share, factor in GROWTH if moved >= share)
    return Pruned(refitted(weight, gram, mask, sparse / power), mask, "alternating")


def refitted(weight: Float64, gram: Float64, mask: Mask, start: Float64 | None = None) -> Float64:
    """Return the weights on a mask with the least error, by conjugate gradients; never worse than the start.

    Args:
        weight: what is to be matched.
        gram: positive semidefinite.
        mask: where weights may differ from 0.
        start: where to begin; None at the masked weight.
    """
    found = (weight if start is None else start) * mask
    diagonal = np.einsum("gii->gi", gram)[:, None, :]
    inverse = np.where(diagonal > 0, 1.0 / np.where(diagonal > 0, diagonal, 1.0), 0.0)
    residual = ((weight - found) @ gram) * mask
    step = residual * inverse
    direction, power = step.copy(), (residual * step).sum(2)
    enough = CLOSE * power
    for _ in range(REFITS):
        if (power <= enough).all():
            break
        image = (direction @ gram) * mask
        curvature = (direction * image).sum(2)
        length = np.where(curvature > 0, power / np.where(curvature > 0, curvature, 1.0), 0.0)[..., None]
        found = found + length * direction
        residual = residual - length * image
        step = residual * inverse
        after = (residual * step).sum(2)
        direction = step + np.where(power > 0, after / np.where(power > 0, power, 1.0), 0.0)[..., None] * direction
        power = after
    return np.asarray(found)


def error_of(weight: Float64, pruned: Float64, gram: Float64) -> float:
    """Return tr(E H E^T) over all groups, E = pruned - weight: the mean squared error of the layer's output."""
    error = pruned - weight
    return max(float(((error @ gram) * error).sum()), 0.0)


Method = Callable[[Float64, Float64, Choice], Pruned]

METHODS: dict[str, Method] = {
    "magnitude": lambda weight, gram, choice: by_magnitude(weight, choice),
    "surgeon": by_surgeon,
    "alternating": by_alternating,
}
"""Name -> method, cheapest first."""


def method_cost(name: str, shape: tuple[int, int, int]) -> float:
    """Return about how many multiply-accumulates a method takes on weights of shape (groups, rows, inputs)."""
    groups, rows, inputs = shape
    if name == "magnitude":
        return float(groups * rows * inputs)
    refit = float(REFITS * rows)
    own = 3.0 * inputs + rows if name == "surgeon" else 12.0 * inputs + 2.0 * ROUNDS / 2 * rows
    return groups * float(inputs) ** 2 * (own + refit)
