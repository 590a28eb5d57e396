"""Weights for drifted inputs: what a layer had best compute where the layers before it are compressed already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.gram import CHUNK, Float64, symmetric
from qcompiler.quant.solvers.problem import Solution


@dataclass(frozen=True, slots=True, eq=False)
class DriftMoments:
    """Joint moments of a layer's input in the float model, x, and in the compressed one, y.

    Attributes:
        exact: float64, shape (groups, inputs, inputs): E[x x^T], centered where a bias takes the mean back.
        cross: E[x y^T], likewise.
        found: E[y y^T], likewise.
        exact_mean / found_mean: float64, shape (groups, inputs): E[x] and E[y].
    """

    exact: Float64
    cross: Float64
    found: Float64
    exact_mean: Float64
    found_mean: Float64

    def error(self, weight: Float64, solution: Solution) -> Float64:
        """Return E[(W x - V y)^2] of every row, float64 of shape (groups, rows), V the solution's weights.

        Args:
            weight: W, shape (groups, rows, inputs).
            solution: of the same shape.
        """
        found = solution.weight()
        parts = (weight @ self.exact) * weight - 2 * (weight @ self.cross) * found + (found @ self.found) * found
        return np.asarray(np.maximum(parts.sum(2), 0.0))

    def power(self, weight: Float64) -> float:
        """Return E[(W x)^2] summed over rows."""
        return float(np.maximum(((weight @ self.exact) * weight).sum(2), 0.0).sum())

    def shift(self, weight: Float64, solution: Solution) -> Float64:
        """Return E[W x] - E[V y], what the bias must take back, shape (groups, rows)."""
        before = np.einsum("gri,gi->gr", weight, self.exact_mean)
        return np.asarray(before - np.einsum("gri,gi->gr", solution.weight(), self.found_mean))

    def target(self, weight: Float64, share: float) -> Float64:
        """Return the weights V' that make of y what W makes of x, drawn towards W.

        V' minimizes E[(W x - V' y)^2] + r (W - V')^2 with r a share of the mean diagonal of E[y y^T]. Rounding V' to V
        then adds (V' - V) E[y y^T] (V' - V)^T, but for the r: the problem that every solver solves.

        Args:
            weight: W, shape (groups, rows, inputs).
            share: at least some 0.001, for E[y y^T] may be singular; infinity returns W.

        Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization (arXiv:2004.10568),
        equation 25, the asymmetric reconstruction. Differs: it is solved for the float weight, in closed form.
        """
        if not np.isfinite(share):
            return weight
        mean = np.einsum("gii->g", self.found) / max(self.found.shape[-1], 1)
        ridge = np.where(mean > 0, share * mean, 1.0)[:, None, None] * np.eye(self.found.shape[-1])
        wanted = weight @ (self.cross + ridge)
        return np.asarray(np.swapaxes(np.linalg.solve(self.found + ridge, np.swapaxes(wanted, 1, 2)), 1, 2))


class DriftAccumulator:
    """Sums the joint moments over chunks of columns, in float64 and in the order in which they come.

    Columns wait until they are ``CHUNK`` or more, as for a ``GramAccumulator``.

    Args:
        groups: groups of the convolution; 1 otherwise.
        inputs: weights per output channel.
    """

    def __init__(self, groups: int, inputs: int) -> None:
        self._sums = [np.zeros((groups, inputs, inputs)) for _ in range(3)]
        self._means = [np.zeros((groups, inputs)) for _ in range(2)]
        self._count = 0
        self._waiting: list[tuple[Float64, Float64]] = []

    def add(self, exact: NDArray[np.floating], found: NDArray[np.floating]) -> None:
        """Add columns of shape (groups, positions, inputs) of both models, at the same positions."""
        self._waiting.append((exact.astype(np.float64), found.astype(np.float64)))
        self._count += exact.shape[1]
        if sum(x.shape[1] for x, _ in self._waiting) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        x, y = (np.concatenate(parts, axis=1) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        for total, (left, right) in zip(self._sums, ((x, x), (x, y), (y, y)), strict=True):
            total += left.transpose(0, 2, 1) @ right
        for mean, part in zip(self._means, (x, y), strict=True):
            mean += part.sum(1)

    def result(self, *, centered: bool) -> DriftMoments:
        """Return the moments over everything added.

        Args:
            centered: a bias takes the mean back.
        """
        self._flush()
        count = max(self._count, 1)
        exact, cross, found = (total / count for total in self._sums)
        x, y = (mean / count for mean in self._means)
        if centered:
            exact = exact - x[:, :, None] * x[:, None, :]
            cross = cross - x[:, :, None] * y[:, None, :]
            found = found - y[:, :, None] * y[:, None, :]
        return DriftMoments(symmetric(exact), cross, symmetric(found), x, y)
