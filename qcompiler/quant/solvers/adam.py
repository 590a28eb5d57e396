"""Adam, for the solvers whose gradients have a closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.grid import Float32


class Adam:
    """Steps of Adam on one array of float32.

    Args:
        shape: of the parameter.
        rate: learning rate.

    Source: Kingma and Ba, "Adam" (2015), algorithm 1.
    """

    DECAY = (0.9, 0.999)
    TINY = 1e-12
    """Far below any gradient here: problems are normalized to errors around 1."""

    def __init__(self, shape: tuple[int, ...], rate: float) -> None:
        self._rate, self._steps = rate, 0
        self._mean, self._power = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def step(self, gradient: NDArray[np.float32], share: float = 1.0) -> Float32:
        """Return what to add to the parameter, given a gradient of its shape and a share of the learning rate."""
        first, second = self.DECAY
        self._steps += 1
        self._mean *= np.float32(first)
        self._mean += np.float32(1 - first) * gradient
        self._power *= np.float32(second)
        self._power += np.float32(1 - second) * np.square(gradient)
        rate = np.float32(self._rate * share * np.sqrt(1 - second**self._steps) / (1 - first**self._steps))
        return np.asarray(-rate * self._mean / (np.sqrt(self._power) + np.float32(self.TINY)))


def row_weights(error: NDArray[np.float64], inputs: int) -> Float32:
    """Return what to multiply each row's e H e^T with, so that ``error`` counts as one per weight.

    Rows do not depend on each other, so each may have a unit of its own; shape (groups, rows, 1).
    """
    positive = np.where(error > 0, error, 1.0)
    return np.asarray(inputs / positive, np.float32)[:, :, None]
