"""AdaRound on the Gram matrix: learns for every weight which of its two neighboring levels it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompiler.quant.grid import Float32
from qcompiler.quant.solvers.adam import Adam, row_weights
from qcompiler.quant.solvers.coupled import coupled_errors
from qcompiler.quant.solvers.descent import polish
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import LayerProblem, Solution, better_rows, block_sums, column_scale, row_errors
from qcompiler.quant.solvers.refit import refit_scale

STRETCH = (1.2, -0.1)
"""The soft bit is clip(1.2 sigmoid(v) - 0.1, 0, 1), which reaches 0 and 1."""

UNDECIDED = 0.02
"""A soft bit this far from 0 and 1 still has to be pushed; below, learning ends early."""


@dataclass(frozen=True, slots=True)
class Adaround:
    """Soft bits between neighboring levels and the scale of every row are learned together, in closed form.

    With the code c = low + gap h(v), where low and gap come from the weight's two neighboring levels and are
    frozen, the loss is sum(e H e^T) + strength * sum(1 - |2 h - 1|^beta); beta falls from high to low, so that
    bits are free at first and decide in the end. Coordinate descent then moves what can still be moved.

    Attributes:
        iterations: of Adam.
        rate / scale_rate: learning rates of the bits, and of the logarithm of the scales.
        strength: of the push to decide; every row's error is measured in that of nearest rounding.
        free: share of the iterations without the push.
        beta: from, to.
        polished: end with coordinate descent.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020); Kim et al., "aespa"
    (2024), the loss on the Gram matrix; Jeon et al., "GENIE" (2023), learned scales with a frozen base. Differs:
    levels need not be evenly spaced.
    """

    name: ClassVar[str] = "adaround"
    iterations: int = 300
    rate: float = 0.05
    scale_rate: float = 1e-3
    strength: float = 0.5
    free: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    polished: bool = True

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        if len(problem.levels) < 2:
            return nearest(problem)
        found = better_rows(problem, nearest(problem), refit_scale(problem, self.learn(problem)))
        return polish(problem, found) if self.polished else found

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes; element-wise work counts as 40 each."""
        size, inputs = problem.weight.size, problem.weight.shape[2]
        return float(self.iterations * size * (inputs + 40))

    def learn(self, problem: LayerProblem) -> Solution:
        """Return codes and scales as learned, without descent; rows may be coupled."""
        units, rows = _units(problem), problem.row_gram
        weight, gram = problem.weight.astype(np.float32), problem.gram.astype(np.float32)
        row_gram = None if rows is None else rows.astype(np.float32)
        low, gap, bits = _bracket(problem)
        log_scale = np.log(np.atleast_3d(problem.scale)).astype(np.float32)
        smallest = np.log(problem.floor).astype(np.float32)[:, :, None]
        inputs, size = weight.shape[2], problem.block_size or weight.shape[2]
        move_bits, move_scale = Adam(bits.shape, self.rate), Adam(log_scale.shape, self.scale_rate)
        for iteration in range(self.iterations):
            own = np.exp(log_scale)
            scale = column_scale(own, inputs, size)
            soft, slope = _soft_bit(bits)
            codes = low + gap * soft
            gradient = ((scale * codes - weight) @ gram) * (2 * units)
            gradient = gradient if row_gram is None else row_gram @ gradient
            beta = self._beta(iteration)
            push = _push(soft, beta) * np.float32(self.strength) if beta else np.float32(0)
            if beta and iteration > self.iterations // 2 and _decided(soft):
                break
            bits += move_bits.step((gradient * scale * gap + push) * slope)
            log_scale += move_scale.step(block_sums(gradient * codes, size) * own)
            np.maximum(log_scale, smallest, out=log_scale)
        codes = low + gap * (bits >= 0)
        scale = problem.at_least(np.exp(log_scale.astype(np.float64)).reshape(problem.scale.shape))
        return Solution(codes.astype(np.int8), scale, problem.block_size)

    def _beta(self, iteration: int) -> float:
        """Return the exponent of the push, 0 while bits are free."""
        start = self.free * self.iterations
        if iteration < start:
            return 0.0
        first, last = self.beta
        return last + (first - last) * (1 - (iteration - start) / (self.iterations - start))


def _units(problem: LayerProblem) -> Float32:
    """Return what to multiply errors with, so that those of nearest rounding count as one per weight.

    Shape (groups, rows, 1), or (groups, 1, 1) where rows are coupled and must share a unit.
    """
    rounded, (_, rows, inputs) = nearest(problem), problem.weight.shape
    if problem.row_gram is None:
        return row_weights(row_errors(problem.weight, rounded, problem.gram), inputs)
    errors = coupled_errors(problem.weight, rounded, problem.gram, problem.row_gram)
    return row_weights(errors[:, None], rows * inputs)


def _bracket(problem: LayerProblem) -> tuple[Float32, Float32, Float32]:
    """Return the lower neighboring level, the distance to the upper one, and the bit variable that interpolates."""
    values = problem.weight / problem.steps()
    levels = problem.levels.astype(np.float64)
    number = np.clip(np.searchsorted(levels, values, side="right") - 1, 0, len(levels) - 2)
    low, gap = levels[number], np.diff(levels)[number]
    share = np.clip((values - low) / gap, 0.01, 0.99)
    wide, offset = STRETCH
    plain = (share - offset) / wide
    return low.astype(np.float32), gap.astype(np.float32), np.log(plain / (1 - plain)).astype(np.float32)


def _soft_bit(bits: Float32) -> tuple[Float32, Float32]:
    """Return h(v) and its derivative, which is 0 where h is clipped."""
    wide, offset = (np.float32(v) for v in STRETCH)
    plain = np.float32(1) / (np.float32(1) + np.exp(-bits))
    free = plain * wide + offset
    soft = np.clip(free, 0, 1)
    return soft, np.where(soft == free, wide * plain * (1 - plain), np.float32(0))


def _push(soft: Float32, beta: float) -> Float32:
    """Return the derivative of 1 - |2 h - 1|^beta by h."""
    distance = 2 * soft - 1
    return np.asarray(-2 * beta * np.sign(distance) * np.abs(distance) ** np.float32(beta - 1), np.float32)


def _decided(soft: Float32) -> bool:
    return bool((np.abs(soft - np.rint(soft)) < UNDECIDED).all())
