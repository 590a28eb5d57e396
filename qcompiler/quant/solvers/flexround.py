"""FlexRound on the Gram matrix: every weight is divided by a factor of its own before it is rounded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qcompiler.quant.grid import Float32
from qcompiler.quant.solvers.adam import Adam, row_weights
from qcompiler.quant.solvers.descent import polish
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import (
    Int8,
    LayerProblem,
    Solution,
    better_rows,
    block_sums,
    column_scale,
    row_errors,
)
from qcompiler.quant.solvers.refit import refit_scale
from qcompiler.quant.solvers.scales import round_to_levels


@dataclass(frozen=True, slots=True)
class Flexround:
    """Wq = s1 level(W / (s1 S2 s3 s4)), all factors positive and learned through their logarithms.

    s1 is the scale of a row, or of a block of it, and the only factor that decodes; S2 has one entry per weight, s3
    one per row, s4 one per input channel of a convolution. Gradients pass straight through the rounding, inside the
    outermost levels; with G = 2 E H they are -G s1 u for the logarithm of S2, their sums for s3 and s4, and
    G s1 (q - u) for s1, where u is the divided weight and q its level. All factors start at 1, so that iteration 0 is
    nearest rounding. The best codes of every row that were met are kept.

    Attributes:
        iterations: of Adam, whose rate falls to 0 as a cosine.
        rate: learning rate of all logarithms.
        polished: end with coordinate descent.

    Source: Lee et al., "FlexRound: Learnable Rounding based on Element-wise Division for Post-Training
    Quantization" (2023). Differs: on the Gram matrix, so that no data and no
    automatic differentiation are needed, and levels need not be evenly spaced.
    """

    name: ClassVar[str] = "flexround"
    iterations: int = 300
    rate: float = 4e-3
    polished: bool = True

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        found = refit_scale(problem, self._learn(problem))
        return polish(problem, found) if self.polished else found

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes; element-wise work counts as 40 each."""
        size, inputs = problem.weight.size, problem.weight.shape[2]
        return float(self.iterations * size * (inputs + 40))

    def _learn(self, problem: LayerProblem) -> Solution:
        best = nearest(problem)
        least = row_errors(problem.weight, best, problem.gram)
        factors = _Factors(problem, self.rate)
        units = row_weights(least, problem.weight.shape[2])
        gram = problem.gram.astype(np.float32)
        best_codes, best_scale = best.codes.copy(), best.scale.astype(np.float32)
        lowest = (least * units[:, :, 0]).astype(np.float32)
        for iteration in range(self.iterations):
            divided, scale = factors.divided()
            codes = round_to_levels(divided, problem.levels)
            error = scale * codes - factors.weight
            product = error @ gram
            loss = (product * error).sum(2) * units[:, :, 0]
            won = loss < lowest
            best_codes[won], best_scale[won], lowest[won] = codes[won], factors.scale()[won], loss[won]
            share = 0.5 * (1 + np.cos(np.pi * iteration / self.iterations))
            factors.step(np.asarray(2 * units * scale * product, np.float32), divided, codes, float(share))
        found = problem.at_least(best_scale.astype(np.float64))
        return better_rows(problem, best, replace(best, codes=best_codes, scale=found))


class _Factors:
    """The logarithms of all factors, and their steps."""

    def __init__(self, problem: LayerProblem, rate: float) -> None:
        groups, rows, inputs = problem.weight.shape
        self.weight: Float32 = problem.weight.astype(np.float32)
        self._ends = np.float32(problem.levels[0]), np.float32(problem.levels[-1])
        self._smallest = np.log(problem.floor).astype(np.float32)[:, :, None]
        self._channels = (groups, inputs // problem.kernel, problem.kernel)
        self._shape, self._size = problem.scale.shape, problem.block_size
        self._scale = np.log(np.atleast_3d(problem.scale)).astype(np.float32)
        self._each = np.zeros(problem.weight.shape, np.float32)
        self._row = np.zeros((groups, rows, 1), np.float32)
        self._channel = np.zeros(self._channels[:2], np.float32)
        shapes = (self._scale.shape, self._each.shape, self._row.shape, self._channel.shape)
        self._moves = [Adam(shape, rate) for shape in shapes]

    def divided(self) -> tuple[Float32, Float32]:
        """Return W / (s1 S2 s3 s4), shape (groups, rows, inputs), and s1, which broadcasts to it."""
        scale = column_scale(np.exp(self._scale), self.weight.shape[2], self._size)
        exponent = self._each + self._row
        if self._channels[2] > 1:
            exponent += np.repeat(self._channel, self._channels[2], axis=1)[:, None, :]
        return self.weight / (scale * np.exp(exponent)), scale

    def scale(self) -> Float32:
        """Return s1, in the shape of the problem's scales."""
        return np.exp(self._scale).reshape(self._shape)

    def step(self, gradient: Float32, divided: Float32, codes: Int8, share: float) -> None:
        """Move all factors, given dL/dWq times s1, the divided weights and their codes."""
        inside = (divided >= self._ends[0]) & (divided <= self._ends[1])
        through = divided * inside
        each = -gradient * through
        whole = block_sums(gradient * (codes - through), self._size)
        self._scale += self._moves[0].step(whole, share)
        np.maximum(self._scale, self._smallest, out=self._scale)
        self._each += self._moves[1].step(each, share)
        self._row += self._moves[2].step(each.sum(2, keepdims=True), share)
        if self._channels[2] > 1:
            self._channel += self._moves[3].step(each.sum(1).reshape(self._channels).sum(2), share)
