"""Solvers where every block of inputs has its own scale: one block is no block, refits lower, order of the solvers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.quant.gram import damped
from qcompiler.quant.levels import uniform_levels
from qcompiler.quant.solvers import SOLVERS
from qcompiler.quant.solvers.by_head import HeadRows
from qcompiler.quant.solvers.contest import Layer, hold_contest
from qcompiler.quant.solvers.coupled import coupled_errors
from qcompiler.quant.solvers.descent import polish
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import Solution, block_sums, column_scale, output_error, row_errors
from qcompiler.quant.solvers.refit import refit_scale
from qcompiler.quant.solvers.scales import make_problem, search_scale
from tests.quant.solver_toys import COLUMNS, toy_heads, toy_inputs, toy_problem

ROOM = 1 + 1e-9
"""Relative room for sums in another order, where an error must not grow."""

EXACT = ("nearest", "gptq", "boa")
"""Solvers that take the same steps for one block as for none; others form some products anew, and round elsewhere."""

every_solver = pytest.mark.parametrize("name", sorted(SOLVERS))


def with_blocks(problem, size):
    """Return a problem whose rows have a scale for every so many inputs, with searched scales to start from."""
    scale = search_scale(problem.weight, problem.gram, problem.levels, problem.floor, size)
    return replace(problem, scale=scale, block_size=size)


def drawn(problem, seed):
    """Return random codes, and random scales around those to start from."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(problem.levels, problem.weight.shape).astype(np.int8)
    return Solution(codes, problem.scale * rng.uniform(0.3, 3, problem.scale.shape), problem.block_size)


def columns_of(solution, row, size):
    """Return codes of one row as a matrix: a column for every block, 0 outside it."""
    codes = solution.codes[0, row].astype(np.float64)
    found = np.zeros((len(codes), solution.scale.shape[2]))
    for block in range(found.shape[1]):
        part = slice(block * size, (block + 1) * size)
        found[part, block] = codes[part]
    return found


# -- views ---------------------------------------------------------------------------------------------


def test_scales_of_blocks_are_repeated_and_sums_are_their_transpose():
    rng = np.random.default_rng(0)
    scale, numbers = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 18))
    spread = column_scale(scale, 18, 5)
    assert spread.shape == numbers.shape
    assert (spread[:, :, 4] == scale[:, :, 0]).all()
    assert (spread[:, :, 5] == scale[:, :, 1]).all()
    assert (spread[:, :, 17] == scale[:, :, 3]).all()
    np.testing.assert_allclose((spread * numbers).sum(2), (scale * block_sums(numbers, 5)).sum(2), rtol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_every_block_is_searched_as_a_row_of_its_own(shared):
    problem = toy_heads(3, uniform_levels(3), shared=shared)
    found = with_blocks(problem, 7).scale
    assert found.shape == (2, 6, 3)
    for block, part in enumerate((slice(0, 7), slice(7, 14), slice(14, 18))):
        gram = problem.gram[:, part, part]
        alone = search_scale(problem.weight[:, :, part], gram, problem.levels, problem.floor)
        np.testing.assert_allclose(found[:, :, block], alone, rtol=1e-12)


# -- one block is no block -----------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("size", [18, 32])
def test_one_block_is_a_scale_per_row(name, size):
    for seed in range(3):
        problem = toy_heads(seed, uniform_levels(3))
        plain, blocks = (SOLVERS[name]().solve(p) for p in (problem, with_blocks(problem, size)))
        assert blocks.scale.shape == (2, 6, 1)
        np.testing.assert_array_equal(blocks.codes, plain.codes)
        if name in EXACT and size == 18:
            np.testing.assert_array_equal(blocks.scale[:, :, 0], plain.scale)
        np.testing.assert_allclose(blocks.scale[:, :, 0], plain.scale, rtol=1e-5)


# -- refits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
def test_every_refit_lowers_the_error_of_every_row(bits):
    for seed in range(10):
        problem = with_blocks(toy_problem(seed, uniform_levels(bits), groups=2), 5)
        scattered = drawn(problem, seed)
        for before in (scattered, replace(scattered, codes=nearest(problem).codes)):
            after = refit_scale(problem, before)
            lost = [row_errors(problem.weight, s, problem.gram) for s in (before, after)]
            assert (lost[1] <= ROOM * lost[0]).all()
            assert (after.scale > 0).all()
            np.testing.assert_array_equal(after.codes, before.codes)
        assert (lost[1] < 0.9 * lost[0]).all()


def test_refitted_scales_are_the_least_squares_of_the_row():
    settled = 0
    for seed in range(10):
        problem = with_blocks(toy_problem(seed, uniform_levels(4)), 5)
        found = refit_scale(problem, nearest(problem))
        root = np.linalg.cholesky(problem.gram[0])
        for row in range(5):
            blocks = columns_of(found, row, 5)
            best, *_ = np.linalg.lstsq(root.T @ blocks, root.T @ problem.weight[0, row], rcond=None)
            if (best > 0).all():
                np.testing.assert_allclose(found.scale[0, row], best, rtol=1e-3)
                settled += 1
    assert settled > 40


def test_refitted_scales_stay_above_the_floor_and_a_silent_block_keeps_its_own():
    problem = with_blocks(toy_problem(1, uniform_levels(4)), 6)
    raised = replace(problem, floor=problem.scale.mean(2) * 1.5)
    before = nearest(replace(raised, scale=raised.at_least(raised.scale)))
    before.codes[:, :, 6:12] = 0
    after = refit_scale(raised, before)
    assert (after.scale >= raised.floor[:, :, None]).all()
    np.testing.assert_array_equal(after.scale[:, :, 1], before.scale[:, :, 1])
    lost = [row_errors(problem.weight, s, problem.gram) for s in (before, after)]
    assert (lost[1] <= ROOM * lost[0]).all()
    assert lost[1].sum() < lost[0].sum()


@every_solver
def test_no_solver_goes_below_the_floor(name):
    problem = with_blocks(toy_problem(0, uniform_levels(4)), 6)
    raised = replace(problem, floor=problem.scale.max(2))
    raised = replace(raised, scale=raised.at_least(problem.scale))
    assert (SOLVERS[name]().solve(raised).scale >= raised.floor[:, :, None]).all()


# -- codes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_loses_less_than_nearest_and_descent_less_than_gptq(bits):
    lost = {name: [] for name in ("nearest", "gptq", "descent")}
    for seed in range(15):
        problem = with_blocks(toy_problem(seed, uniform_levels(bits), inputs=40), 16)
        for name, errors in lost.items():
            errors.append(output_error(problem.weight, SOLVERS[name]().solve(problem), problem.gram))
    medians = [np.median(errors) for errors in lost.values()]
    assert medians == sorted(medians, reverse=True)
    assert medians[1] < 0.85 * medians[0]


@every_solver
def test_scales_of_blocks_lose_less_than_those_of_rows(name):
    lost = []
    for seed in range(5):
        problem = toy_heads(seed, uniform_levels(3), inputs=40)
        found = [SOLVERS[name]().solve(p) for p in (problem, with_blocks(problem, 8))]
        lost.append([coupled_errors(problem.weight, s, problem.gram, problem.row_gram).sum() for s in found])
    rows, blocks = np.median(lost, axis=0)
    assert blocks < rows


def test_descent_ends_where_no_code_can_move():
    problem = with_blocks(toy_problem(4, uniform_levels(3), rows=3, inputs=10), 4)
    before = drawn(problem, 4)
    end = polish(problem, before, sweeps=500)
    errors = row_errors(problem.weight, end, problem.gram)
    assert (errors < row_errors(problem.weight, before, problem.gram)).all()
    for row, column in np.ndindex(3, 10):
        for level in problem.levels:
            codes = end.codes.copy()
            codes[0, row, column] = level
            moved = row_errors(problem.weight, replace(end, codes=codes), problem.gram)
            assert moved[0, row] >= errors[0, row] * (1 - 2e-3)


def test_descent_keeps_what_is_to_stay():
    problem = with_blocks(toy_problem(2, uniform_levels(3)), 7)
    start = nearest(problem)
    kept = np.random.default_rng(0).random(start.codes.shape) < 0.5
    found = polish(problem, start, kept=kept)
    np.testing.assert_array_equal(found.codes[~kept], start.codes[~kept])
    assert (found.codes != start.codes).any()


# -- the contest ---------------------------------------------------------------------------------------


def test_the_best_of_a_layer_with_heads_is_no_worse_than_any_entrant():
    plain = toy_problem(0, uniform_levels(2), rows=14)
    moments = [i.transpose(0, 2, 1) @ i / COLUMNS for i in (toy_inputs(0, 1, 18), toy_inputs(1, 2, 6))]
    head = HeadRows(
        role="query",
        rows=np.arange(12).reshape(2, 6),
        gram=moments[0],
        held=moments[0],
        row_gram=moments[1],
        held_rows=moments[1],
    )
    layer = Layer(weight=plain.weight, gram=moments[0], held=moments[0], floor=plain.floor, heads=(head,), block_size=7)
    contest = hold_contest(layer, {"planned": uniform_levels(2)}, list(SOLVERS), 1e12)
    assert {e.solver for e in contest.entrants} == {*SOLVERS, "best rows"}
    for entrant in contest.entrants:
        assert entrant.solution.scale.shape == (1, 14, 3)
        assert entrant.solution.block_size == 7
        assert entrant.error == layer.error(entrant.solution) >= contest.winner.error
    start = make_problem(layer.weight, damped(layer.gram), uniform_levels(2), layer.floor, block_size=7)
    assert contest.winner.error < layer.error(nearest(start))
