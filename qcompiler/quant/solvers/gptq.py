"""GPTQ: columns are rounded one after the other, and the rest makes up for each column's error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompiler.quant.gram import Float64, inverse_factor
from qcompiler.quant.levels import Levels
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
        columns = Columns(problem.gram, ordered=self.ordered, block=self.block)
        codes = columns.codes(problem.weight, problem.steps(), problem.levels)
        return refit_scale(problem, Solution(codes, problem.scale, problem.block_size))

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes."""
        groups, rows, inputs = problem.weight.shape
        return float(groups * inputs**2 * (rows + 2 * inputs))


class Columns:
    """The columns of a layer in the order in which they are rounded, and how the others make up for each.

    Args:
        gram: float64, shape (groups, inputs, inputs), or (1, inputs, inputs) for all groups.
        ordered: by descending diagonal.
        block: columns whose compensation is applied at once.
    """

    def __init__(self, gram: Float64, *, ordered: bool = True, block: int = 64) -> None:
        diagonal = np.einsum("gii->gi", gram)
        plain = np.broadcast_to(np.arange(diagonal.shape[1]), diagonal.shape)
        self._order = np.argsort(-diagonal, axis=1, kind="stable") if ordered else plain
        self._block = block
        sorted_rows = np.take_along_axis(gram, self._order[:, :, None], 1)
        self._factor = inverse_factor(np.take_along_axis(sorted_rows, self._order[:, None, :], 2))

    def codes(self, weight: Float64, steps: Float64, levels: Levels) -> Int8:
        """Return codes of shape (groups, rows, inputs).

        Args:
            weight: of that shape.
            steps: scales, shape (groups, rows, inputs), or 1 for the inputs where rows have one each.
            levels: sorted levels.
        """
        order = self._order[:, None, :]
        steps = np.broadcast_to(steps, weight.shape)
        # Columns first, so that each lies in one piece.
        rest, steps = (
            np.ascontiguousarray(np.take_along_axis(a, order, 2).transpose(0, 2, 1)) for a in (weight, steps)
        )
        found = np.ascontiguousarray(self._rounded(rest, steps, levels).transpose(0, 2, 1))
        back = np.argsort(self._order, axis=1, kind="stable")
        return np.take_along_axis(found, back[:, None, :], 2)

    def _rounded(self, rest: Float64, steps: Float64, levels: Levels) -> Int8:
        """Return codes of shape (groups, inputs, rows); ``rest`` is used up."""
        factor, inputs = self._factor, rest.shape[1]
        codes = np.empty(rest.shape, np.int8)
        for first in range(0, inputs, self._block):
            last = min(first + self._block, inputs)
            errors = np.empty((len(rest), last - first, rest.shape[2]))
            for column in range(first, last):
                step = steps[:, column]
                code = round_to_levels(rest[:, column] / step, levels)
                error = (rest[:, column] - code * step) / factor[:, column, column, None]
                rest[:, column + 1 : last] -= factor[:, column, column + 1 : last, None] * error[:, None]
                codes[:, column], errors[:, column - first] = code, error
            rest[:, last:] -= factor[:, first:last, last:].transpose(0, 2, 1) @ errors
        return codes
