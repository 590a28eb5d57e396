"""The best code words for a layer, against a search that computes every error anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.quant.levels import Levels
from qcompiler.quant.solvers.code_words import Slices, best_words
from qcompiler.quant.solvers.problem import LayerProblem, Solution, output_error
from tests.quant.solver_toys import toy_problem

EVEN = np.asarray([[a, b, c, a ^ b ^ c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], np.uint8)
"""Words of four bits with an even number of ones."""
SIGNS: Levels = np.asarray([-1, 1], np.int8)
UNEVEN: Levels = np.asarray([-36, 63], np.int8)


def solution_of(problem: LayerProblem, slices: Slices, chosen: np.ndarray) -> Solution:
    """Return the solution in which every slice is the word of a number."""
    bits = np.zeros(problem.weight.size, np.uint8)
    for places, word in zip(slices.parts(), chosen, strict=True):
        bits[places] = slices.words[word][: places.size]
    return Solution(problem.levels[bits].reshape(problem.weight.shape), problem.scale)


def words_of(problem: LayerProblem, found: Solution, slices: Slices) -> list[list[int]]:
    bits = (found.codes.reshape(-1) == problem.levels[1]).astype(int)
    return [bits[places].tolist() for places in slices.parts()]


def case(seed: int, levels: Levels, **shape: int) -> tuple[LayerProblem, Slices, Solution]:
    problem = toy_problem(seed, levels, **shape)
    order = np.random.default_rng(seed).permutation(problem.weight.size)
    slices = Slices(EVEN, order)
    rng = np.random.default_rng(seed + 1)
    return problem, slices, solution_of(problem, slices, rng.integers(0, len(EVEN), len(slices.parts())))


@pytest.mark.parametrize("levels", [SIGNS, UNEVEN], ids=["signs", "uneven"])
@pytest.mark.parametrize("shape", [{"rows": 3, "inputs": 7}, {"groups": 2, "rows": 3, "inputs": 6}])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_word_for_a_slice_is_better(seed, shape, levels):
    problem, slices, start = case(seed, levels, **shape)
    found = best_words(problem, start, slices)
    known = {tuple(word) for word in EVEN.tolist()}
    whole = [w for w in words_of(problem, found, slices) if len(w) == 4]
    assert all(tuple(word) in known for word in whole)
    least = output_error(problem.weight, found, problem.gram)
    assert least < output_error(problem.weight, start, problem.gram)
    chosen = [
        next(k for k, w in enumerate(EVEN.tolist()) if w[: len(b)] == b) for b in words_of(problem, found, slices)
    ]
    for place in range(len(chosen)):
        for word in range(len(EVEN)):
            other = solution_of(problem, slices, np.asarray([*chosen[:place], word, *chosen[place + 1 :]]))
            error = output_error(problem.weight, replace(other, scale=found.scale), problem.gram)
            assert error >= least * 0.99  # sweeps end when little is gained


def test_scales_are_refitted_and_keep_to_the_floor():
    problem, slices, start = case(0, SIGNS, rows=3, inputs=8)
    found = best_words(problem, start, slices)
    for factor in (0.98, 1.02):
        other = replace(found, scale=found.scale * factor)
        assert output_error(problem.weight, other, problem.gram) > output_error(problem.weight, found, problem.gram)
    high = replace(problem, floor=np.full(problem.floor.shape, 10.0), scale=np.full(problem.scale.shape, 10.0))
    assert (best_words(high, replace(start, scale=high.scale), slices).scale >= 10.0).all()


def test_a_start_that_cannot_be_better_stays():
    problem, slices, start = case(0, SIGNS, rows=2, inputs=6)
    exact = replace(problem, weight=start.weight())
    found = best_words(exact, start, slices)
    assert np.array_equal(found.codes, start.codes)
    assert np.array_equal(found.scale, start.scale)
