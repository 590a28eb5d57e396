"""Solvers that heed the row Hessian of a head: identities, brute force, order on toys, refits that never hurt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.quant.levels import even_levels, uniform_levels
from qcompiler.quant.solvers import SOLVERS
from qcompiler.quant.solvers.adaround import Adaround
from qcompiler.quant.solvers.aespa import Aespa
from qcompiler.quant.solvers.boa import Boa
from qcompiler.quant.solvers.coupled import better_groups, coupled_errors
from qcompiler.quant.solvers.descent import descend
from qcompiler.quant.solvers.gptq import Gptq
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import Solution, row_errors
from qcompiler.quant.solvers.refit import refine_scale, refit_scale
from tests.quant.solver_toys import logit_errors, toy_heads, toy_problem

ROOM = 1 + 1e-9
"""Relative room for sums in another order, where an error must not grow."""

WIDTHS = {"W4": uniform_levels(4), "W2": uniform_levels(2), "even": even_levels(2)}
every_width = pytest.mark.parametrize("levels", WIDTHS.values(), ids=WIDTHS)


def error_of(problem, solution):
    return float(coupled_errors(problem.weight, solution, problem.gram, problem.row_gram).sum())


def drawn(problem, seed, blocks=0):
    rng = np.random.default_rng(seed)
    codes = rng.choice(problem.levels, problem.weight.shape).astype(np.int8)
    shape = (*problem.scale.shape, blocks) if blocks else problem.scale.shape
    scale = problem.scale[..., None] if blocks else problem.scale
    return Solution(codes, scale * rng.uniform(0.3, 3, shape), -(-18 // blocks) if blocks else 0)


# -- the objective -------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_error_counts_every_pair_of_rows(seed, shared):
    problem = toy_heads(seed, uniform_levels(3), shared=shared)
    solution = drawn(problem, seed)
    found = coupled_errors(problem.weight, solution, problem.gram, problem.row_gram)
    np.testing.assert_allclose(found, logit_errors(problem, solution), rtol=1e-9)


def test_the_error_of_queries_is_that_of_the_logits():
    rng = np.random.default_rng(3)
    inputs, keys = rng.standard_normal((40, 9)), rng.standard_normal((30, 5))
    weight = rng.standard_normal((1, 5, 9))
    problem = replace(toy_problem(0, uniform_levels(3), rows=5, inputs=9), weight=weight)
    problem = replace(problem, gram=(inputs.T @ inputs)[None], row_gram=(keys.T @ keys)[None])
    solution = drawn(problem, 1)
    logits = [inputs @ w[0].T @ keys.T for w in (solution.weight(), weight)]
    assert error_of(problem, solution) == pytest.approx(np.square(logits[0] - logits[1]).sum(), rel=1e-9)


def test_without_a_row_hessian_the_error_is_that_of_the_rows():
    problem = toy_problem(2, uniform_levels(3), groups=2)
    solution = drawn(problem, 2)
    rows = row_errors(problem.weight, solution, problem.gram)
    np.testing.assert_allclose(coupled_errors(problem.weight, solution, problem.gram, None), rows.sum(1), rtol=1e-12)


def test_better_groups_takes_the_least_error_of_every_head():
    problem = toy_heads(0, uniform_levels(3), heads=4)
    several = [drawn(problem, seed) for seed in range(4)]
    best = np.min([logit_errors(problem, s) for s in several], axis=0)
    found = logit_errors(problem, better_groups(problem, *several))
    np.testing.assert_allclose(found, best, rtol=1e-9)
    assert len({int(np.argmin(e)) for e in np.stack([logit_errors(problem, s) for s in several]).T}) > 1


# -- BoA -----------------------------------------------------------------------------------------------


@every_width
@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("shared", [True, False])
def test_boa_with_an_identity_row_hessian_is_gptq_exactly(levels, rows, shared):
    for seed in range(3):
        problem = toy_heads(seed, levels, rows=21, shared=shared)
        identity = replace(problem, row_gram=np.broadcast_to(np.eye(21), (2, 21, 21)))
        for one in (identity, replace(problem, row_gram=None)):
            found, expected = Boa(rows=rows).solve(one), Gptq().solve(one)
            np.testing.assert_array_equal(found.codes, expected.codes)
            np.testing.assert_array_equal(found.scale, expected.scale)
        assert not np.array_equal(Boa(rows=rows).solve(problem).codes, expected.codes)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_rows_move_to_the_exact_minimum_after_every_block(rows, monkeypatch):
    """With H the identity and a fixed grid, every row is rounded from where brute force puts it."""
    problem = toy_heads(5, uniform_levels(3), heads=1, rows=6, inputs=4)
    problem = replace(problem, gram=np.eye(4)[None])
    monkeypatch.setattr("qcompiler.quant.solvers.boa.search_scale", lambda rest, *_: np.full(rest.shape[:2], 0.2))
    problem = replace(problem, scale=np.full((1, 6), 0.2))
    order = np.argsort(-np.diag(problem.row_gram[0]), kind="stable")
    weight, codes = problem.weight[0].copy(), np.zeros((6, 4), np.int8)
    for first in range(0, 6, rows):
        here, behind = order[first : first + rows], order[first + rows :]
        codes[here] = np.clip(np.ceil(weight[here] / 0.2 - 0.5), -4, 3)
        done = order[: first + rows]
        error = codes[done] * 0.2 - problem.weight[0][done]
        gram = problem.row_gram[0]
        if len(behind):
            cross = gram[np.ix_(behind, done)] @ error
            weight[behind] = problem.weight[0][behind] - np.linalg.solve(gram[np.ix_(behind, behind)], cross)
    np.testing.assert_array_equal(Boa(rows=rows).solve(problem).codes[0], codes)


def test_on_toys_boa_loses_less_than_gptq_and_gptq_less_than_nearest():
    levels, names = uniform_levels(2), ("nearest", "gptq", "boa", "aespa")
    lost = {name: [] for name in names}
    for seed in range(30):
        problem = toy_heads(seed, levels, heads=1, rows=8, inputs=12)
        for name in names:
            solver = Boa(rows=2) if name == "boa" else SOLVERS[name]()
            lost[name].append(error_of(problem, solver.solve(problem)))
    medians = [np.median(lost[name]) for name in names]
    assert medians == sorted(medians, reverse=True)
    assert medians[2] < 0.9 * medians[1]


def test_blocks_of_one_row_compensate_most():
    lost = {}
    for rows in (1, 16):
        problems = [toy_heads(seed, uniform_levels(2), heads=1, rows=16) for seed in range(20)]
        lost[rows] = np.median([error_of(p, Boa(rows=rows).solve(p)) for p in problems])
    assert lost[1] < lost[16]


def test_heads_are_solved_as_if_each_were_alone():
    problem = toy_heads(3, uniform_levels(3), heads=3, shared=False)
    for solver in (Boa(), Aespa(iterations=20)):
        whole = solver.solve(problem)
        for head in range(3):
            part = slice(head, head + 1)
            fields = ("weight", "gram", "scale", "floor", "row_gram")
            alone = replace(problem, **{name: getattr(problem, name)[part] for name in fields})
            if solver.name == "boa":  # descent stops by the error of all heads
                np.testing.assert_array_equal(solver.solve(alone).codes, whole.codes[part])


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_gram_that_all_groups_share_is_that_of_each(name):
    problem = toy_heads(1, uniform_levels(3), heads=3)
    repeated = replace(problem, gram=np.repeat(problem.gram, 3, axis=0))
    one, other = (SOLVERS[name]().solve(p) for p in (problem, repeated))
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_allclose(one.scale, other.scale, rtol=1e-12)


# -- scales --------------------------------------------------------------------------------------------


@every_width
@pytest.mark.parametrize("blocks", [0, 3])
def test_refining_scales_never_raises_the_error(levels, blocks):
    for seed in range(6):
        problem = toy_heads(seed, levels, shared=seed % 2 == 0)
        before = drawn(problem, seed, blocks)
        after = refine_scale(problem, before)
        lost = [logit_errors(problem, s) for s in (before, after)]
        assert (lost[1] <= ROOM * lost[0]).all()
        assert lost[1].sum() < 0.997 * lost[0].sum()
        assert (after.scale > 0).all()
        np.testing.assert_array_equal(after.codes, before.codes)


@pytest.mark.parametrize("blocks", [1, 3])
def test_many_refinements_end_where_no_scale_can_move(blocks):
    problem = toy_heads(1, uniform_levels(4))
    scale = problem.scale[:, :, None] * np.ones(blocks) * 1.1
    end = refine_scale(problem, Solution(nearest(problem).codes, scale, 18 // blocks), sweeps=2000)
    assert not np.allclose(end.scale, scale, rtol=1e-2)
    for factor in (0.99, 1.01):
        for place in np.ndindex(end.scale.shape):
            near = end.scale.copy()
            near[place] *= factor
            assert error_of(problem, Solution(end.codes, near, 18 // blocks)) > error_of(problem, end)


def test_scales_of_one_sweep_are_the_closed_form():
    problem = toy_heads(4, uniform_levels(3), heads=1, rows=1)
    before = drawn(problem, 4)
    closed = refit_scale(problem, before)
    np.testing.assert_allclose(refine_scale(problem, before).scale, closed.scale, rtol=1e-12)


def test_refined_scales_stay_above_their_floor():
    problem = toy_heads(0, uniform_levels(4))
    raised = replace(problem, floor=problem.scale * 1.5, scale=problem.scale * 1.5)
    for name in ("boa", "aespa"):
        assert (SOLVERS[name]().solve(raised).scale >= raised.floor).all()


def blocks_of(problem, length=7):
    """Return scales that cover every block of so many inputs, (groups, rows, blocks)."""
    cuts = range(0, problem.weight.shape[2], length)
    peaks = [np.abs(problem.weight[:, :, first : first + length]).max(2) for first in cuts]
    return np.stack(peaks, axis=2) / problem.levels[-1]


@pytest.mark.parametrize("name", ["gptq", "boa"])
def test_a_scale_per_row_and_block_of_inputs(name):
    lost = {"nearest": [], name: []}
    for seed in range(10):
        problem = toy_heads(seed, uniform_levels(4), inputs=20)
        problem = replace(problem, scale=blocks_of(problem), block_size=7)
        found = SOLVERS[name]().solve(problem)
        assert found.scale.shape == (2, 6, 3)
        steps = np.repeat(problem.scale, 7, axis=2)[:, :, :20]
        plain = np.clip(np.rint(problem.weight / steps), -8, 7).astype(np.int8)
        lost["nearest"].append(error_of(problem, refine_scale(problem, Solution(plain, problem.scale, 7))))
        lost[name].append(error_of(problem, found))
    assert np.median(lost[name]) < 0.8 * np.median(lost["nearest"])


@pytest.mark.parametrize("name", ["gptq", "boa"])
def test_blocks_of_one_scale_are_rows_of_one_scale(name):
    problem = replace(toy_heads(6, uniform_levels(3)), row_gram=None)
    blocks = replace(problem, scale=np.repeat(problem.scale[:, :, None], 3, axis=2), block_size=8)
    one, several = (SOLVERS[name]().solve(p) for p in (problem, blocks))
    np.testing.assert_array_equal(one.codes, several.codes)
    assert (
        row_errors(problem.weight, several, problem.gram) <= ROOM * row_errors(problem.weight, one, problem.gram)
    ).all()


# -- descent and learned rounding ----------------------------------------------------------------------


@every_width
def test_descent_over_coupled_rows_never_raises_the_error(levels):
    for seed in range(4):
        problem = toy_heads(seed, levels, inputs=9)
        before = drawn(problem, seed)
        after = descend(problem, before, sweeps=30)
        lost = [logit_errors(problem, s) for s in (before, after)]
        assert (lost[1] <= ROOM * lost[0]).all()
        assert lost[1].sum() < 0.5 * lost[0].sum()


def test_descent_ends_where_no_code_can_move():
    problem = toy_heads(2, uniform_levels(2), heads=1, rows=3, inputs=5)
    end = descend(problem, nearest(problem), sweeps=500)
    for row, column in np.ndindex(3, 5):
        for level in problem.levels:
            codes = end.codes.copy()
            codes[0, row, column] = level
            assert error_of(problem, Solution(codes, end.scale)) >= error_of(problem, end) * (1 - 2e-3)


def test_learned_rounding_heeds_the_row_hessian():
    better = 0
    for seed in range(8):
        problem = toy_heads(seed, uniform_levels(2), heads=1, rows=8)
        lost = [
            error_of(problem, refine_scale(problem, Adaround().learn(p)))
            for p in (problem, replace(problem, row_gram=None))
        ]
        better += lost[0] < lost[1]
    assert better >= 6


def test_aespa_is_no_worse_than_boa():
    for seed in range(5):
        problem = toy_heads(seed, uniform_levels(2))
        boa, aespa = (logit_errors(problem, s.solve(problem)) for s in (Boa(), Aespa(iterations=50)))
        assert (aespa <= ROOM * boa).all()
