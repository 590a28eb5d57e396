"""The benchmark of attention: samples without padding, and refits of scales on the layers of a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.attention import make_bench, prepare
from benchmarks.attention_models import MINILM, Lines, minilm, unpadded
from qcompiler.quant.solvers.coupled import coupled_errors
from qcompiler.quant.solvers.gptq import Columns
from qcompiler.quant.solvers.nearest import nearest
from qcompiler.quant.solvers.problem import Solution, row_errors
from qcompiler.quant.solvers.refit import refine_scale, refit_scale
from qcompiler.quant.solvers.scales import make_problem

DATA = Path(__file__).parents[3] / "shared/data"
ROOM = 1 + 1e-9
"""Relative room for sums in another order, where an error must not grow."""


def test_samples_are_cut_to_their_own_lengths():
    source = np.asarray([[5, 6, 7, 0], [8, 0, 0, 0]])
    tokens = np.asarray([[1, 4, 0], [1, 4, 9]])
    first, second = unpadded({"source": source, "tokens": tokens})
    assert first["source"].tolist() == [[5, 6, 7]]
    assert second["source"].tolist() == [[8]]
    assert first["tokens"].tolist() == [[1, 4]]
    assert second["tokens"].tolist() == [[1, 4, 9]]


@pytest.fixture(scope="module")
def bench():
    if not (DATA / MINILM).is_file():
        pytest.skip(f"{DATA / MINILM} is absent")
    whole = minilm(DATA)
    few = replace(whole, solved=Lines(whole.solved.samples[:24]), held=Lines(whole.held.samples[:4]))
    return make_bench(prepare(few), few)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block_size", [0, 32])
def test_every_refit_of_a_trained_layer_lowers_its_objective(bench, bits, block_size):
    for block in bench.attention.blocks[::5]:
        for role in ("query", "value", "output"):
            rows = replace(bench, bits=bits).problem(block.projections[role].weight)
            start = make_problem(rows.weight, rows.gram, rows.levels, rows.floor, block_size=block_size)
            codes = Columns(start.gram).codes(start.weight, start.steps(), start.levels)
            for before in (nearest(start), Solution(codes, start.scale, block_size)):
                lost = [row_errors(start.weight, s, start.gram) for s in (before, refit_scale(start, before))]
                assert (lost[1] <= ROOM * lost[0]).all()
                assert lost[1].sum() < 0.9999 * lost[0].sum()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
def test_every_refit_of_a_trained_head_lowers_its_objective(bench, bits):
    blocks = bench.attention.blocks
    for name in (blocks[0].query.weight, blocks[5].value.weight):
        plain = replace(bench, bits=bits).problem(name)
        for head in bench.attention.heads[name]:
            problem = head.problem(plain.weight, plain.levels, plain.floor)
            before = nearest(problem)
            lost = [
                coupled_errors(problem.weight, s, problem.gram, problem.row_gram)
                for s in (before, refine_scale(problem, before))
            ]
            assert (lost[1] < lost[0]).all()
