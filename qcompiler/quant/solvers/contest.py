"""The contest of one layer: several tables of levels, several solvers, one winner on inputs that none of them saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.quant.gram import Float64, damped
from qcompiler.quant.levels import Levels, even_levels, uniform_levels
from qcompiler.quant.solvers import SOLVERS
from qcompiler.quant.solvers.descent import Descent, polish
from qcompiler.quant.solvers.fitted import fitted_levels, level_scale, refit_levels
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import LayerProblem, Solution, better_rows, output_error, output_power
from qcompiler.quant.solvers.scales import diagonal_scale, make_problem

TABLES = ("uniform", "even", "fitted")
MIXTURE = "best rows"
"""The entrant that takes every row from the solver that solved it best."""

SCOUTED = 3
"""Sweeps of coordinate descent by which tables of levels are compared."""

FITTED_BITS = 4
"""Widths above this get evenly spaced levels only: they are dense enough."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """What a contest is about.

    Attributes:
        weight: float64, shape (groups, rows, inputs).
        gram: float64, shape (groups, inputs, inputs): H on the samples that solvers see.
        held: the same on others, which decide.
        floor: float64, shape (groups, rows): smallest scales.
        kernel: weights per input channel.
    """

    weight: Float64
    gram: Float64
    held: Float64
    floor: Float64
    kernel: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """One solver's answer.

    Attributes:
        solver / table: names.
        levels: the table.
        solution: codes and scales.
        error: tr(E H E^T) on the inputs that decide.
    """

    solver: str
    table: str
    levels: Levels
    solution: Solution
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """All entrants of one layer.

    Attributes:
        entrants: in the order of the solvers.
        power: tr(W H W^T) on the inputs that decide: what errors are compared with.
        absent: solvers that did not take part, and why.
    """

    entrants: tuple[Entrant, ...]
    power: float
    absent: tuple[str, ...] = ()

    @property
    def winner(self) -> Entrant:
        """The entrant with the least error, the first of equals."""
        return min(self.entrants, key=lambda e: e.error)

    def error_of(self, solver: str) -> float | None:
        """Return the error of a solver, None if it did not take part."""
        return next((e.error for e in self.entrants if e.solver == solver), None)


def tables_for(layer: Layer, num_bits: int, names: Sequence[str]) -> dict[str, Levels]:
    """Return the named tables of levels of a width that differ; "fitted" only up to ``FITTED_BITS``."""
    found: dict[str, Levels] = {}
    for name in names:
        if name == "uniform":
            levels = uniform_levels(num_bits)
        elif name == "even":
            levels = even_levels(num_bits)
        elif num_bits <= FITTED_BITS:
            importance = np.einsum("gii->gi", layer.gram)[:, None, :]
            levels = fitted_levels(layer.weight, importance, 2**num_bits)
        else:
            continue
        if not any(np.array_equal(levels, other) for other in found.values()):
            found[name] = levels
    return found


def hold_contest(
    layer: Layer, tables: dict[str, Levels], solvers: Sequence[str], limit: float, seed: int = 0
) -> Contest:
    """Return what every solver makes of a layer, on the table that suits coordinate descent best.

    Args:
        layer: weights and moments.
        tables: name -> levels, at least one.
        solvers: names in ``SOLVERS``.
        limit: multiply-accumulates that a solver may take.
        seed: of solvers that draw.
    """
    absent = [n for n in solvers if SOLVERS[n]().cost(_unscaled(layer)) > limit]
    table, problem, known = _best_table(layer, tables, limit)
    solved: dict[str, Solution] = {}
    for name in solvers:
        if name not in absent:
            start = known.get(name)
            solved[name] = SOLVERS[name]().solve(problem, seed) if start is None else polish(problem, start)
    if not solved:
        solved["nearest"] = SOLVERS["nearest"]().solve(problem, seed)
    if len(solved) > 1:
        solved[MIXTURE] = better_rows(problem, *solved.values())
    entrants = tuple(
        Entrant(name, table, problem.levels, s, output_error(layer.weight, s, layer.held)) for name, s in solved.items()
    )
    reasons = tuple(f"{n}: the layer is too large for it" for n in absent)
    return Contest(entrants, output_power(layer.weight, layer.held), reasons)


def _unscaled(layer: Layer) -> LayerProblem:
    levels = uniform_levels(2)
    return LayerProblem(weight=layer.weight, gram=layer.gram, levels=levels, scale=layer.floor, floor=layer.floor)


def _best_table(layer: Layer, tables: dict[str, Levels], limit: float) -> tuple[str, LayerProblem, dict[str, Solution]]:
    """Return the table with the least error, its problem, and what was solved on the way."""
    gram = damped(layer.gram)
    scout = "descent" if Descent().cost(_unscaled(layer)) <= limit else "nearest"
    best: tuple[float, str, LayerProblem, Solution] | None = None
    for name, levels in tables.items():
        problem = make_problem(layer.weight, gram, levels, layer.floor, layer.kernel)
        solution = Descent(sweeps=SCOUTED).solve(problem) if scout == "descent" else SOLVERS[scout]().solve(problem)
        if name == "fitted" and scout == "descent":
            problem, solution = _refitted(problem, solution)
        error = output_error(layer.weight, solution, gram)
        if best is None or error < best[0]:
            best = error, name, problem, solution
    if best is None:
        raise ValueError("a contest needs a table of levels")
    return best[1], best[2], {"descent": best[3]} if scout == "descent" else {}


def _refitted(problem: LayerProblem, solution: Solution) -> tuple[LayerProblem, Solution]:
    """Return a fitted table after fitting it once more to the codes that were found, if that is better."""
    levels = refit_levels(problem, solution)
    scale = np.maximum(level_scale(levels, problem.levels, solution.scale), problem.floor)
    again = problem.with_levels(levels, scale)
    found = polish(again, nearest(again), sweeps=SCOUTED)
    taken = np.searchsorted(problem.levels, solution.codes)
    if len(levels) == len(problem.levels):
        found = better_rows(again, found, polish(again, Solution(levels[taken], scale), sweeps=SCOUTED))
    before, after = (output_error(problem.weight, s, problem.gram) for s in (solution, found))
    return (again, found) if after < before else (problem, solution)


def plain_choice(
    weight: Float64, importance: Float64, floor: Float64, tables: dict[str, Levels]
) -> tuple[str, Levels, Solution]:
    """Return the table and the nearest codes with the least weighted squared error, where there is no Gram matrix.

    Args:
        weight: shape (groups, rows, inputs).
        importance: broadcasts to the weight: mean square of the input behind each, or 1.
        floor: shape (groups, rows).
        tables: name -> levels, at least one.
    """
    found = []
    for name, levels in tables.items():
        scale = diagonal_scale(weight, importance, levels, floor)
        empty = np.empty((weight.shape[0], 0, 0))
        solution = nearest(LayerProblem(weight=weight, gram=empty, levels=levels, scale=scale, floor=floor))
        error = float((np.square(solution.weight() - weight) * importance).sum())
        found.append((error, name, levels, solution))
    _, name, levels, solution = min(found, key=lambda f: f[0])
    return name, levels, solution
