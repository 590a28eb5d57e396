"""Trained weights with zeros that stay: the mask of a pruned weight is a projection of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.lowering import weight_codes
from qcompiler.quant.grid import SMALLEST_SCALE
from qcompiler.training.weights import Start, nearest

COARSE = 8.0
"""Units in the largest level. A pruned weight has far to go, so that with many levels it moves by several a step."""


class Sparse:
    """A pruned weight: what is 0 in the plan stays 0, all others move freely and are rounded wherever they are used.

    Gradients pass straight through the rounding, as in ``StraightThrough``, but not to the zeros. Positions are in
    units of an eighth of the largest level, or of the gap between levels where that is more.
    """

    soft = False

    def __init__(self, start: Start) -> None:
        self.start = start
        codes = weight_codes((start.position * start.scale).cpu().numpy(), start.entry)
        self._mask = torch.tensor(codes != 0, dtype=start.position.dtype, device=start.position.device)
        self._unit = max(start.gap, start.reach / COARSE)
        self.position = (start.position * self._mask / self._unit).detach().clone().requires_grad_()
        self.growth = torch.zeros_like(start.scale).requires_grad_()

    def leaves(self) -> Sequence[Tensor]:
        """Return the position and the growth of the scale."""
        return self.position, self.growth

    def scale(self) -> Tensor:
        """Return the planned scale, grown so that the largest level moves by about a unit a unit of growth."""
        grown = (self.growth * (self._unit / self.start.reach)).exp()
        return (self.start.scale * grown).clamp(min=SMALLEST_SCALE)

    def codes(self) -> Tensor:
        """Return the levels nearest to the position, 0 outside the mask."""
        return nearest(self.position * self._unit, self.start.levels) * self._mask

    def loose(self) -> Tensor:
        """Return the position, 0 outside the mask."""
        return self.position * self._unit * self._mask

    def project(self) -> None:
        """Move every weight to its nearest level, and what was pruned to 0."""
        with torch.no_grad():
            self.position.copy_(self.codes() / self._unit)

    def penalty(self, progress: float) -> Tensor:
        """Return 0: codes are levels."""
        return torch.zeros((), device=self.position.device)
