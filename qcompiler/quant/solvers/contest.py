"""The contest of one layer: several tables of levels, several solvers, one winner on inputs that none of them saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.quant.gram import Float64, damped
from qcompiler.quant.levels import Levels, even_levels, uniform_levels
from qcompiler.quant.solvers import COUPLED, SOLVERS
from qcompiler.quant.solvers.by_head import HeadRows, mixture, scattered, without_head
from qcompiler.quant.solvers.descent import Descent, polish
from qcompiler.quant.solvers.fitted import fitted_levels, level_scale, refit_levels
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import LayerProblem, Solution, better_rows, output_error, output_power
from qcompiler.quant.solvers.scales import diagonal_scale, make_problem

TABLES = ("uniform", "even", "fitted")
TOO_LARGE = "the layer is too large for it"
TINY = 1e-300

MIXTURE = "best rows"
"""The entrant that takes every row, or every head of attention, from the solver that solved it best."""

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
        heads: rows that belong to heads of attention; only layers with one group have such.
        block_size: inputs that share a scale; 0 is all of a row.
    """

    weight: Float64
    gram: Float64
    held: Float64
    floor: Float64
    kernel: int = 1
    heads: tuple[HeadRows, ...] = ()
    block_size: int = 0

    def problem(self, levels: Levels, gram: Float64) -> LayerProblem:
        """Return the problem of the layer on a table of levels, given the damped H, with searched scales."""
        return make_problem(self.weight, gram, levels, self.floor, kernel=self.kernel, block_size=self.block_size)

    def error(self, solution: Solution) -> float:
        """Return what decides: tr(E H E^T), or by what share attention is off, summed over queries, keys and values."""
        if not self.heads:
            return output_error(self.weight, solution, self.held)
        rest = self._rest()
        shares = [head.error(self.weight, solution) for head in self.heads]
        if rest.size:
            weight = self.weight[:, rest]
            shares.append(
                output_error(weight, solution.part(rest), self.held) / max(output_power(weight, self.held), TINY)
            )
        return float(sum(shares))

    def power(self) -> float:
        """Return what errors are compared with: that of weights that are all 0."""
        if not self.heads:
            return output_power(self.weight, self.held)
        return float(len(self.heads) + bool(self._rest().size))

    def _rest(self) -> NDArray[np.int64]:
        return without_head(self.weight.shape[1], self.heads)


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """One solver's answer.

    Attributes:
        solver / table: names.
        levels: the table.
        solution: codes and scales.
        error: on the inputs that decide, see ``Layer.error``.
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
        power: what errors are compared with, see ``Layer.power``.
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
        solvers: names in ``SOLVERS``. Those of coupled rows solve only rows that belong to heads; where no other is
            named, GPTQ solves the rest, which is what they do without coupling.
        limit: multiply-accumulates that a solver may take.
        seed: of solvers that draw.
    """
    plain = [n for n in solvers if n not in COUPLED] or ["gptq"]
    absent = {n: TOO_LARGE for n in plain if SOLVERS[n]().cost(_unscaled(layer)) > limit}
    table, problem, known = _best_table(layer, tables, limit)
    solved: dict[str, Solution] = {}
    for name in plain:
        if name not in absent:
            start = known.get(name)
            solved[name] = SOLVERS[name]().solve(problem, seed) if start is None else polish(problem, start)
    if not solved:
        solved["nearest"] = SOLVERS["nearest"]().solve(problem, seed)
    absent |= _solve_heads(layer, problem, [n for n in solvers if n in COUPLED], limit, solved)
    if len(solved) > 1:
        every = list(solved.values())
        solved[MIXTURE] = mixture(problem, layer.heads, every) if layer.heads else better_rows(problem, *every)
    entrants = tuple(Entrant(name, table, problem.levels, s, layer.error(s)) for name, s in solved.items())
    return Contest(entrants, layer.power(), tuple(f"{n}: {reason}" for n, reason in absent.items()))


def _solve_heads(
    layer: Layer, problem: LayerProblem, names: Sequence[str], limit: float, solved: dict[str, Solution]
) -> dict[str, str]:
    """Add what solvers of coupled rows make of a layer's heads; return which did not take part, and why."""
    if not layer.heads:
        return {}
    absent = {}
    parts = [head.problem(layer.weight, problem.levels, layer.floor, layer.block_size) for head in layer.heads]
    rest = better_rows(problem, *solved.values())
    for name in names:
        if any(SOLVERS[name]().cost(part) > limit for part in parts):
            absent[name] = TOO_LARGE
        else:
            found = [SOLVERS[name]().solve(part) for part in parts]
            solved[name] = scattered(rest, layer.heads, found)
    return absent


def _unscaled(layer: Layer) -> LayerProblem:
    levels = uniform_levels(2)
    return LayerProblem(weight=layer.weight, gram=layer.gram, levels=levels, scale=layer.floor, floor=layer.floor)


def _best_table(layer: Layer, tables: dict[str, Levels], limit: float) -> tuple[str, LayerProblem, dict[str, Solution]]:
    """Return the table with the least error, its problem, and what was solved on the way."""
    gram = damped(layer.gram)
    scout = "descent" if Descent().cost(_unscaled(layer)) <= limit else "nearest"
    best: tuple[float, str, LayerProblem, Solution] | None = None
    for name, levels in tables.items():
        problem = layer.problem(levels, gram)
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
    scale = problem.at_least(level_scale(levels, problem.levels, solution.scale))
    again = problem.with_levels(levels, scale)
    found = polish(again, nearest(again), sweeps=SCOUTED)
    taken = np.searchsorted(problem.levels, solution.codes)
    if len(levels) == len(problem.levels):
        start = replace(solution, codes=levels[taken], scale=scale)
        found = better_rows(again, found, polish(again, start, sweeps=SCOUTED))
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
