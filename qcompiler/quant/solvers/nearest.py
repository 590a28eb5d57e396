"""nearest: every weight to its nearest level, with searched and refitted scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.quant.solvers.problem import LayerProblem, Solution
from qcompiler.quant.solvers.refit import alternate
from qcompiler.quant.solvers.scales import RATIOS, SHORTLIST, round_to_levels


def nearest(problem: LayerProblem) -> Solution:
    """Return nearest rounding with the problem's own scales."""
    return Solution(
        round_to_levels(problem.weight / problem.steps(), problem.levels), problem.scale, problem.block_size
    )


@dataclass(frozen=True, slots=True)
class Nearest:
    """Rounds to nearest and refits the scales in turns; correlations of inputs enter only through the scales."""

    name: ClassVar[str] = "nearest"

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        return alternate(problem, nearest(problem))

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes."""
        return float(problem.weight.size * (len(RATIOS) + SHORTLIST * problem.weight.shape[2]))
