"""GPTQ: columns are rounded one after the other, and the rest makes up for each column's error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompiler.quant.gram import Float64, inverse_factor
from qcompiler.quant.solvers.problem import Int8, LayerProblem, Solution
from qcompiler.quant.solvers.refit import refit_scale
from qcompiler.quant.solvers.scales import round_to_levels


@dataclass(frozen=True, slots=True)
class Gptq:
    """Rounds column by column; what is not yet rounded moves by the exact least-squares compensation.

    Attributes:
        block: columns whose compensation is applied at once; has no influence on the result but rounding noise.
        ordered: columns by descending diagonal of H, so that the loudest inputs are rounded while most others can
            still make up for them.

    Source: Frantar et al., "GPTQ" (2022), algorithm 1. Differs: any sorted table of levels, all groups of a
    convolution at once, and the scales are refitted at the end.
    """

    name: ClassVar[str] = "gptq"
    block: int = 64
    ordered: bool = True

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        order = self._order(problem)
        weight = np.take_along_axis(problem.weight, order[:, None, :], 2)
        gram = np.take_along_axis(np.take_along_axis(problem.gram, order[:, :, None], 1), order[:, None, :], 2)
        codes = self._codes(weight, inverse_factor(gram), problem)
        back = np.argsort(order, axis=1, kind="stable")
        return refit_scale(problem, Solution(np.take_along_axis(codes, back[:, None, :], 2), problem.scale))

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes."""
        groups, rows, inputs = problem.weight.shape
        return float(groups * inputs**2 * (rows + 2 * inputs))

    def _order(self, problem: LayerProblem) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        diagonal = np.einsum("gii->gi", problem.gram)
        if not self.ordered:
            return np.broadcast_to(np.arange(diagonal.shape[1]), diagonal.shape)
        return np.argsort(-diagonal, axis=1, kind="stable")

    def _codes(self, weight: Float64, factor: Float64, problem: LayerProblem) -> Int8:
        """Return codes of shape (groups, rows, inputs); inside, columns come first, so that each lies in one piece."""
        rest = np.ascontiguousarray(weight.transpose(0, 2, 1))
        codes = np.empty(rest.shape, np.int8)
        inputs, scale = weight.shape[2], problem.scale
        for first in range(0, inputs, self.block):
            last = min(first + self.block, inputs)
            errors = np.empty((len(rest), last - first, rest.shape[2]))
            for column in range(first, last):
                code = round_to_levels(rest[:, column] / scale, problem.levels)
                error = (rest[:, column] - code * scale) / factor[:, column, column, None]
                rest[:, column + 1 : last] -= factor[:, column, column + 1 : last, None] * error[:, None]
                codes[:, column], errors[:, column - first] = code, error
            rest[:, last:] -= factor[:, first:last, last:].transpose(0, 2, 1) @ errors
        return np.ascontiguousarray(codes.transpose(0, 2, 1))
