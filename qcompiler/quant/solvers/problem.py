"""The problem that every solver of integer codes solves, its answer, and how good an answer is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.grid import SMALLEST_SCALE
from qcompiler.quant.levels import Levels

Float64 = NDArray[np.float64]
Int8 = NDArray[np.int8]
Number = TypeVar("Number", np.float32, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerProblem:
    """Find codes q and scales s with the least error tr(E H E^T), E = s q - W, summed over groups.

    Where rows are coupled it is tr(G E H E^T), with G the row Hessian: what an error of one output channel costs
    beside the errors of others, such as those of the same head of attention. ``coupled.py`` has what such problems
    need; solvers that do not name G take it for the identity.

    Attributes:
        weight: float64, shape (groups, rows, inputs); rows are the output channels of a group.
        gram: float64, shape (groups, inputs, inputs), or (1, inputs, inputs) where all groups read the same: H, the
            (damped) second moment of the layer's input, centered where a bias takes the mean error back.
        levels: sorted int8 values that codes may take.
        scale: float64, shape (groups, rows), or (groups, rows, blocks) with one per block of ``block_size``
            neighbouring inputs: where solvers start from.
        floor: float64, shape (groups, rows): the smallest scale allowed.
        kernel: weights per input channel, so that inputs = channels * kernel.
        row_gram: float64, shape (groups, rows, rows): G, (damped) and positive definite; None is the identity.
        block_size: inputs that share a scale, where ``scale`` has blocks; 0 where it has none.
    """

    weight: Float64
    gram: Float64
    levels: Levels
    scale: Float64
    floor: Float64
    kernel: int = 1
    row_gram: Float64 | None = None
    block_size: int = 0

    def steps(self) -> Float64:
        """Return the scales to start from, such that they broadcast to the weight; see ``column_scale``."""
        return column_scale(self.scale, self.weight.shape[2], self.block_size)

    def at_least(self, scale: Float64) -> Float64:
        """Return scales of the shape of ``scale``, none below the floor of its row."""
        return np.maximum(scale, self.floor.reshape(*self.floor.shape, *(1,) * (scale.ndim - 2)))

    def with_levels(self, levels: Levels, scale: Float64) -> LayerProblem:
        """Return the same problem on another table of levels, with the scales to start from there."""
        return replace(self, levels=levels, scale=scale)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Codes and scales of one layer.

    Attributes:
        codes: int8, shape (groups, rows, inputs); every one is a level.
        scale: float64, shape (groups, rows), or (groups, rows, blocks) where blocks of inputs have their own; positive.
        block_size: inputs in a block, 0 where there are none.
    """

    codes: Int8
    scale: Float64
    block_size: int = 0

    def steps(self) -> Float64:
        """Return the scales, such that they broadcast to the codes; see ``column_scale``."""
        return column_scale(self.scale, self.codes.shape[2], self.block_size)

    def weight(self) -> Float64:
        """Return the weights that this stands for, shape (groups, rows, inputs)."""
        return self.codes * self.steps()

    def part(self, rows: slice | NDArray[np.int64]) -> Solution:
        """Return some of the rows of every group."""
        return replace(self, codes=self.codes[:, rows], scale=self.scale[:, rows])


def column_scale(scale: NDArray[Number], inputs: int, block_size: int = 0) -> NDArray[Number]:
    """Return scales that broadcast to (groups, rows, inputs), from one per row or one per row and block of inputs.

    Args:
        scale: shape (groups, rows) or (groups, rows, blocks).
        inputs: of a row.
        block_size: inputs in a block, of which the last may have fewer.
    """
    if scale.ndim == 2:
        return scale[:, :, None]
    if scale.shape[2] == 1:
        return scale
    return np.repeat(scale, block_size, axis=2)[:, :, :inputs]


def block_sums(numbers: NDArray[Number], block_size: int = 0) -> NDArray[Number]:
    """Return the sums over every block of inputs, shape (groups, rows, blocks).

    Args:
        numbers: shape (groups, rows, inputs).
        block_size: inputs in a block, of which the last may have fewer; 0 is all in one.
    """
    return np.asarray(in_blocks(numbers, block_size).sum(3))


def in_blocks(numbers: NDArray[Number], block_size: int = 0) -> NDArray[Number]:
    """Return numbers of shape (groups, rows, inputs) as (groups, rows, blocks, inputs of a block), filled with 0."""
    size = block_size or numbers.shape[2]
    missing = -numbers.shape[2] % size
    filled = np.pad(numbers, ((0, 0), (0, 0), (0, missing))) if missing else numbers
    return filled.reshape(*numbers.shape[:2], -1, size)


@runtime_checkable
class Solver(Protocol):
    """One way to solve the problem. Implementations are frozen dataclasses whose fields are their options."""

    name: ClassVar[str]

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the same for the same problem and seed."""
        ...

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes."""
        ...


def smallest_scales(weight: Float64) -> Float64:
    """Return the floor of scales where nothing else asks for one, shape (groups, rows)."""
    return np.full(weight.shape[:2], SMALLEST_SCALE)


def row_errors(weight: Float64, solution: Solution, gram: Float64) -> Float64:
    """Return e H e^T of every row, float64 of shape (groups, rows).

    Args:
        weight: shape (groups, rows, inputs).
        solution: of the same shape.
        gram: shape (groups, inputs, inputs).
    """
    error = solution.weight() - weight
    return np.asarray(np.maximum(((error @ gram) * error).sum(2), 0.0))


def output_error(weight: Float64, solution: Solution, gram: Float64) -> float:
    """Return tr(E H E^T) summed over groups: the mean squared error that rounding makes in the layer's output."""
    return float(row_errors(weight, solution, gram).sum())


def output_power(weight: Float64, gram: Float64) -> float:
    """Return tr(W H W^T) summed over groups: the mean square (or variance, of a centered Gram) of the output."""
    return float(np.maximum(((weight @ gram) * weight).sum(2), 0.0).sum())


def better_rows(problem: LayerProblem, *solutions: Solution) -> Solution:
    """Return for every row the solution with the least error; rows do not depend on each other."""
    errors = np.stack([row_errors(problem.weight, s, problem.gram) for s in solutions])
    best = errors.argmin(0)
    codes, scale = solutions[0].codes.copy(), solutions[0].scale.copy()
    for number, solution in enumerate(solutions[1:], 1):
        won = best == number
        codes[won], scale[won] = solution.codes[won], solution.scale[won]
    return replace(solutions[0], codes=codes, scale=scale)
