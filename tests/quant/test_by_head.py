"""Layers with heads: what decides, the best of every head, and rows that belong to none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.quant.gram import damped
from qcompiler.quant.levels import uniform_levels
from qcompiler.quant.solvers.by_head import HeadRows, mixture, scattered, without_head
from qcompiler.quant.solvers.contest import MIXTURE, Layer, hold_contest, tables_for
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import Solution, output_error, output_power
from qcompiler.quant.solvers.scales import make_problem
from tests.quant.solver_toys import COLUMNS, toy_inputs, toy_problem


def grams(seed, count, size):
    inputs = toy_inputs(seed, count, size)
    return inputs.transpose(0, 2, 1) @ inputs / COLUMNS


def toy_layer(seed=0, rows=14, inputs=18):
    """Rows 0 to 11 are interleaved dimensions of two heads, the last two belong to none."""
    plain = toy_problem(seed, uniform_levels(2), rows=rows, inputs=inputs)
    head = HeadRows(
        role="query",
        rows=np.arange(12).reshape(6, 2).T.copy(),
        gram=plain.gram,
        held=grams(seed + 7, 1, inputs),
        row_gram=grams(seed + 1, 2, 6),
        held_rows=grams(seed + 2, 2, 6),
    )
    return Layer(weight=plain.weight, gram=plain.gram, held=head.held, floor=plain.floor, heads=(head,))


def test_what_decides_is_attention_and_beside_it_the_output():
    layer = toy_layer()
    problem = make_problem(layer.weight, damped(layer.gram), uniform_levels(2), layer.floor)
    solution, head = nearest(problem), layer.heads[0]
    error, power = 0.0, 0.0
    for number, rows in enumerate(head.rows):
        moved = solution.weight()[0][rows] - layer.weight[0][rows]
        for matrix, total in ((moved, "error"), (layer.weight[0][rows], "power")):
            found = float(np.trace(head.held_rows[number] @ matrix @ head.held[0] @ matrix.T))
            error, power = (error + found, power) if total == "error" else (error, power + found)
    rest = Solution(solution.codes[:, 12:], solution.scale[:, 12:])
    plain = output_error(layer.weight[:, 12:], rest, layer.held) / output_power(layer.weight[:, 12:], layer.held)
    assert layer.error(solution) == pytest.approx(error / power + plain, rel=1e-9)
    assert layer.power() == 2
    assert replace(layer, heads=()).error(solution) == output_error(layer.weight, solution, layer.held)


def test_rows_come_back_to_their_places():
    layer = toy_layer()
    problem = make_problem(layer.weight, layer.gram, uniform_levels(2), layer.floor)
    whole, head = nearest(problem), layer.heads[0]
    part = Solution(np.ones((2, 6, 18), np.int8), np.arange(12.0).reshape(2, 6) + 1)
    found = scattered(whole, [head], [part])
    np.testing.assert_array_equal(found.codes[0][head.rows], part.codes)
    np.testing.assert_array_equal(found.scale[0][head.rows], part.scale)
    np.testing.assert_array_equal(found.codes[:, 12:], whole.codes[:, 12:])
    np.testing.assert_array_equal(head.of(found).scale, part.scale)
    assert without_head(14, [head]).tolist() == [12, 13]


def test_the_mixture_takes_heads_as_a_whole_and_other_rows_alone():
    layer = toy_layer()
    problem = make_problem(layer.weight, damped(layer.gram), uniform_levels(2), layer.floor)
    rng = np.random.default_rng(0)
    several = [
        Solution(rng.choice(problem.levels, problem.weight.shape).astype(np.int8), problem.scale) for _ in range(6)
    ]
    found = mixture(problem, layer.heads, several)
    for rows in layer.heads[0].rows:
        assert any(np.array_equal(found.codes[0][rows], s.codes[0][rows]) for s in several)
    own = layer.heads[0].problem(problem.weight, problem.levels, problem.floor)
    from qcompiler.quant.solvers.coupled import coupled_errors

    every = [coupled_errors(own.weight, layer.heads[0].of(s), own.gram, own.row_gram) for s in several]
    best = coupled_errors(own.weight, layer.heads[0].of(found), own.gram, own.row_gram)
    np.testing.assert_allclose(best, np.min(every, axis=0), rtol=1e-12)


def test_solvers_of_heads_take_part_only_where_there_are_heads():
    layer = toy_layer()
    tables = tables_for(layer, 2, ("uniform",))
    names = [e.solver for e in hold_contest(layer, tables, ("gptq", "boa"), 1e12).entrants]
    assert names == ["gptq", "boa", MIXTURE]
    alone = hold_contest(replace(layer, heads=()), tables, ("gptq", "boa"), 1e12)
    assert [e.solver for e in alone.entrants] == ["gptq"]
    fallback = hold_contest(replace(layer, heads=()), tables, ("boa",), 1e12)
    assert [e.solver for e in fallback.entrants] == ["gptq"]


def test_a_head_that_is_too_large_is_left_to_the_others_with_a_reason():
    contest = hold_contest(toy_layer(), {"uniform": uniform_levels(2)}, ("nearest", "boa"), 10.0)
    assert "boa: the layer is too large for it" in contest.absent
