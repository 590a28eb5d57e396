"""aespa: rounding learned on what attention makes of the error, then coordinate descent on the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.quant.solvers.adaround import Adaround
from qcompiler.quant.solvers.boa import Boa
from qcompiler.quant.solvers.coupled import better_groups
from qcompiler.quant.solvers.descent import TURNS, descend
from qcompiler.quant.solvers.problem import LayerProblem, Solution
from qcompiler.quant.solvers.refit import refine_scale


@dataclass(frozen=True, slots=True)
class Aespa:
    """Minimizes tr(G E H E^T) by learning: of queries and keys the error of the logits, of values that of the output.

    To first order in the errors, the logits of a head change by E_Q X times the keys plus the queries times E_K X;
    the derivative of the softmax is bounded and left out. For the values H is the moment of the inputs as attention
    weighs them, and the error is exact. Starts of every head are BoA and soft bits that Adam learns on the same
    objective; coordinate descent ends it. The error of no head rises after its better start.

    Attributes:
        iterations: of Adam.
        sweeps: of coordinate descent over the rows.

    Source: Kim et al., "aespa" (2024), the objectives and learned rounding on Gram matrices; the Taylor step is from
    a secondary text. Differs: W_O^T W_O couples the rows of the values, scales are learned too, descent follows.
    """

    name: ClassVar[str] = "aespa"
    iterations: int = 300
    sweeps: int = TURNS

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        found = Boa().solve(problem)
        if len(problem.levels) > 1:
            learned = Adaround(iterations=self.iterations).learn(problem)
            found = better_groups(problem, found, refine_scale(problem, learned))
        return descend(problem, found, self.sweeps)

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes; element-wise work counts as 40 each."""
        rows, inputs = problem.weight.shape[1:]
        each = self.iterations * (inputs + rows + 40) + self.sweeps * 3 * (inputs + 40)
        return Boa().cost(problem) + float(problem.weight.size * each)
