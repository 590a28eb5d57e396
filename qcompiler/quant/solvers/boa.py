"""BoA: GPTQ whose rows, too, make up for each other's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.gram import Float64, inverse_factor
from qcompiler.quant.solvers.gptq import Columns
from qcompiler.quant.solvers.problem import Int8, LayerProblem, Solution, column_scale
from qcompiler.quant.solvers.refit import refine_scale
from qcompiler.quant.solvers.scales import search_scale

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Boa:
    """Rounds a block of rows as GPTQ does; the rows that are left move by the exact least-squares compensation.

    With G^-1 = U^T U, rows R behind a block B move by -(U_BR)^T (U_BB)^-T (W_B - Q_B), which is the minimum over W_R
    of tr(G E H E^T) given the block. With G the identity nothing moves, and codes and scales are those of GPTQ. Rows
    that were moved get their scales searched anew before they are rounded.

    Attributes:
        rows: of a block. Blocks of one row compensate most; larger ones take fewer steps.
        block: columns whose compensation is applied at once; has no influence on the result but rounding noise.
        ordered: rows by descending diagonal of G, and columns by that of H.

    Source: Kim et al., "BoA" (2025), for the row Hessian; Kim et al., "TurboBoA" (2026), for blocks of rows and the
    refinement of scales. The row step is written from its published description and derived anew; the row Hessian
    W_O^T W_O of the values is a reconstruction. Differs: any sorted table of levels, several sweeps of refinement.
    """

    name: ClassVar[str] = "boa"
    rows: int = 16
    block: int = 64
    ordered: bool = True

    def solve(self, problem: LayerProblem, seed: int = 0) -> Solution:
        """Return codes and scales; the seed is not used."""
        order = self._order(problem)
        weight, scale, floor = (_sorted(a, order) for a in (problem.weight, problem.scale, problem.floor))
        codes, scale = self._rounded(problem, _factor(problem, order), weight, (scale, floor))
        back = np.argsort(order, axis=1, kind="stable")
        return refine_scale(problem, Solution(_sorted(codes, back), _sorted(scale, back), problem.block_size))

    def cost(self, problem: LayerProblem) -> float:
        """Return about how many multiply-accumulates it takes."""
        groups, rows, inputs = problem.weight.shape
        return float(len(problem.gram) * 2 * inputs**3 + groups * inputs * rows * (6 * inputs + 2 * rows))

    def _order(self, problem: LayerProblem) -> NDArray[np.int64]:
        shape = problem.weight.shape[:2]
        if problem.row_gram is None or not self.ordered:
            return np.broadcast_to(np.arange(shape[1]), shape)
        return np.argsort(-np.einsum("gii->gi", problem.row_gram), axis=1, kind="stable")

    def _rounded(
        self, problem: LayerProblem, factor: Float64, weight: Float64, start: tuple[Float64, Float64]
    ) -> tuple[Int8, Float64]:
        """Return codes and the scales they were rounded with; rows are in the order of the factor."""
        columns = Columns(problem.gram, ordered=self.ordered, block=self.block)
        rest, (scale, floor) = weight.copy(), start
        scale = scale.copy()
        codes = np.empty(weight.shape, np.int8)
        for first in range(0, weight.shape[1], self.rows):
            here, behind = slice(first, first + self.rows), slice(first + self.rows, None)
            moved = (rest[:, here] != weight[:, here]).any(2)
            if moved.any():
                anew = search_scale(rest[:, here], problem.gram, problem.levels, floor[:, here], problem.block_size)
                scale[:, here][moved] = anew[moved]
            steps = column_scale(scale[:, here], weight.shape[2], problem.block_size)
            codes[:, here] = columns.codes(rest[:, here], steps, problem.levels)
            error = rest[:, here] - codes[:, here] * steps
            share = np.linalg.solve(factor[:, here, here].transpose(0, 2, 1), error)
            rest[:, behind] -= factor[:, here, behind].transpose(0, 2, 1) @ share
        return codes, scale


def _factor(problem: LayerProblem, order: NDArray[np.int64]) -> Float64:
    """Return U with G^-1 = U^T U for rows in some order, shape (groups, rows, rows)."""
    groups, rows, _ = problem.weight.shape
    if problem.row_gram is None:
        return np.broadcast_to(np.eye(rows), (groups, rows, rows))
    gram = np.take_along_axis(np.take_along_axis(problem.row_gram, order[:, :, None], 1), order[:, None, :], 2)
    return inverse_factor(gram)


def _sorted(array: NDArray[Number], order: NDArray[np.int64]) -> NDArray[Number]:
    """Return an array of shape (groups, rows, ...) with its rows in some order."""
    return np.take_along_axis(array, order.reshape(*order.shape, *(1,) * (array.ndim - 2)), 1)
