"""Gram matrices: what a layer's inputs say about which weight errors reach its output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompileError

Float64 = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean diagonal that is added to a Gram matrix; what a few samples say is not the whole truth."""

SINGULAR = 1e-12
"""A pivot below this share of the largest diagonal element is what rounding left of a 0."""

FOLLOWED = 0.5
"""How far a layer's target moves towards what makes up for all errors before it, as few samples show them."""

CHUNK = 512
"""Columns that are multiplied at once, at least."""

MAX_DAMPINGS = 10
"""How often the damping is repeated while a factorization fails."""


@dataclass(frozen=True, slots=True, eq=False)
class Gram:
    """Moments of a layer's input columns (im2col), per group of a grouped convolution.

    Attributes:
        second: float64, shape (groups, inputs, inputs): the mean of x x^T.
        mean: float64, shape (groups, inputs): the mean of x.
        count: how many columns were seen.
    """

    second: Float64
    mean: Float64
    count: int

    def centered(self) -> Float64:
        """Return the covariance, float64 of shape (groups, inputs, inputs).

        It is the right objective where a bias correction follows: an error E of the weights shifts the mean of
        the output by E m, which the bias takes back, and leaves E (H - m m^T) E^T, which it cannot.
        """
        return symmetric(self.second - self.mean[:, :, None] * self.mean[:, None, :])


class GramAccumulator:
    """Sums x x^T and x over chunks of columns, in float64 and in the order in which they come.

    Columns wait until they are ``CHUNK`` or more: a product of few columns takes as long to store as to compute.

    Args:
        groups: groups of the convolution; 1 otherwise.
        inputs: weights per output channel.
    """

    def __init__(self, groups: int, inputs: int) -> None:
        self._second = np.zeros((groups, inputs, inputs))
        self._sum = np.zeros((groups, inputs))
        self._count = 0
        self._waiting: list[Float64] = []

    def add(self, columns: NDArray[np.floating]) -> None:
        """Add columns of shape (groups, positions, inputs), each of which is one x; any floating type."""
        self._waiting.append(columns.astype(np.float64))
        self._count += columns.shape[1]
        if sum(part.shape[1] for part in self._waiting) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            exact = np.concatenate(self._waiting, axis=1)
            self._waiting.clear()
            self._second += exact.transpose(0, 2, 1) @ exact
            self._sum += exact.sum(1)

    def result(self) -> Gram:
        """Return the moments over everything added.

        Raises:
            QCompileError: nothing was added.
        """
        if self._count == 0:
            raise QCompileError("a Gram matrix over no columns at all")
        self._flush()
        return Gram(symmetric(self._second / self._count), self._sum / self._count, self._count)


@dataclass(frozen=True, slots=True, eq=False)
class PairedGram:
    """Moments of a layer's input columns in two models: one that is changed, and the one it is to follow.

    Attributes:
        changed: of the inputs in the changed model, x'.
        cross: float64, shape (groups, inputs, inputs): the mean of x x'^T, x in the model to follow.
        mean: float64, shape (groups, inputs): the mean of x.
    """

    changed: Gram
    cross: Float64
    mean: Float64

    def target(self, weight: Float64, gram: Float64, added: Float64, *, centered: bool) -> Float64:
        """Return weights between W and those that follow it best on the changed inputs.

        The latter, V, have the least mean of |V x' - W x|^2, and any other weights U have the error of V plus
        tr((U - V) H (U - V)^T): what is solved for H and V is solved for the model to follow. On few samples V
        follows them too closely, so the way from W to V is gone by ``FOLLOWED`` only.

        Args:
            weight: W, float64 of shape (groups, rows, inputs).
            gram: H, the damped moment of x'.
            added: float64, shape (groups, inputs): what the damping added to the diagonal of H; it draws V to W.
            centered: a bias takes back the mean error.

        Source: Li et al., "GPTAQ" (2025), the asymmetric calibration of its equation 3. Differs: solved in closed
        form before anything is pruned or rounded.
        """
        cross = self.cross
        if centered:
            cross = cross - self.mean[:, :, None] * self.changed.mean[:, None, :]
        wanted = weight @ cross + weight * added[:, None, :]
        best = np.swapaxes(np.linalg.solve(gram, np.swapaxes(wanted, 1, 2)), 1, 2)
        return np.asarray(weight + FOLLOWED * (best - weight))


class PairedAccumulator:
    """Sums moments over pairs of columns, in float64 and in the order in which they come; see ``PairedGram``."""

    def __init__(self, groups: int, inputs: int) -> None:
        self._changed = GramAccumulator(groups, inputs)
        self._cross = np.zeros((groups, inputs, inputs))
        self._sum = np.zeros((groups, inputs))
        self._count = 0

    def add(self, followed: NDArray[np.floating], changed: NDArray[np.floating]) -> None:
        """Add columns of both models at the same positions, each of shape (groups, positions, inputs)."""
        self._changed.add(changed)
        exact = followed.astype(np.float64)
        self._cross += exact.transpose(0, 2, 1) @ changed.astype(np.float64)
        self._sum += exact.sum(1)
        self._count += followed.shape[1]

    def result(self) -> PairedGram:
        """Return the moments over everything added.

        Raises:
            QCompileError: nothing was added.
        """
        moments = self._changed.result()
        return PairedGram(moments, self._cross / self._count, self._sum / self._count)


def symmetric(gram: Float64) -> Float64:
    """Return the symmetric part of matrices of shape (..., inputs, inputs): products round differently by order."""
    return np.asarray((gram + np.swapaxes(gram, -1, -2)) / 2)


def damped(gram: Float64, share: float = DAMPING) -> Float64:
    """Return a Gram matrix with a share of its mean diagonal added to the diagonal.

    An input that was never active gets a small diagonal of its own and no correlation, so that its weights are
    rounded to nearest. A group without any activity gets the identity.

    Args:
        gram: float64, shape (groups, inputs, inputs), positive semidefinite.
        share: of the mean diagonal.

    Source: Frantar et al., "GPTQ" (2022), the damping before the factorization. Differs: weights of dead inputs
    are not set to 0, because an input that is silent on a few samples may speak on others.
    """
    mean = np.einsum("gii->g", gram) / max(gram.shape[-1], 1)
    added = np.where(mean > 0, share * mean, 1.0)
    return gram + added[:, None, None] * np.eye(gram.shape[-1])


def dead_inputs(gram: Float64) -> int:
    """Return how many inputs, over all groups, never moved away from their mean (from 0 where it is not centered)."""
    return int(np.count_nonzero(np.einsum("gii->gi", gram) <= 0))


def is_singular(gram: Float64) -> bool:
    """Return True if some combination of inputs never moved, so that what is rounded there has no effect on the error.

    Args:
        gram: float64, shape (groups, inputs, inputs), positive semidefinite, as it was captured.
    """
    try:
        pivots = np.square(np.einsum("gii->gi", np.linalg.cholesky(gram)))
    except np.linalg.LinAlgError:
        return True
    return bool((pivots.min(-1) <= SINGULAR * np.einsum("gii->gi", gram).max(-1)).any())


def inverse_factor(gram: Float64) -> Float64:
    """Return upper triangular U with gram^-1 = U^T U, float64 of the same shape (groups, inputs, inputs).

    A matrix that is not positive definite is damped again, up to ``MAX_DAMPINGS`` times.

    Raises:
        QCompileError: it still is not, or it holds NaN or infinity.
    """
    if not np.isfinite(gram).all():
        raise QCompileError("a Gram matrix is not finite: some input of the layer is NaN or infinity")
    trial = gram
    for attempt in range(MAX_DAMPINGS + 1):
        try:
            inverse = symmetric(np.asarray(np.linalg.inv(trial), np.float64))
            return np.asarray(np.swapaxes(np.linalg.cholesky(inverse), -1, -2), np.float64)
        except np.linalg.LinAlgError:
            trial = damped(gram, DAMPING * 4.0**attempt)
    raise QCompileError("a Gram matrix is not positive definite, whatever is added to its diagonal")
