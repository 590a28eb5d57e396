"""What rows of few bits cost is named beside the layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from qcompiler.repair.bits import ranked_damage
from qcompiler.repair.tables import table_damages
from qcompiler.trials.trial import Trial
from tests.compiling import context, run_passes, start
from tests.models import FLOAT, build
from tests.passes.tables import INT64, sentence_data, sentence_net, table


def decided(bits, proto=None):
    where = context("x86", sentence_data())
    where = replace(where, recipe=replace(where.recipe, embedding_bits=bits), acceptance=sentence_data(seed=1))
    state = start(sentence_net() if proto is None else proto)
    trial = Trial(state.model, where.target, where.acceptance, where)
    planning = ("place", "observe", "embedding-bits", "scale-weights", "calibrate")
    return run_passes(state, where, *planning), replace(where, trial=trial)


def test_a_table_of_few_bits_is_named_with_what_8_bits_would_gain():
    state, where = decided((1, 2))
    (damage,) = ranked_damage(state, where)
    assert damage.name == "embed"
    assert damage.damage_db > 5
    assert damage.cause == "few bits a row: more with --embedding-bits"
    assert damage.bits in (1, 2)


def test_a_table_of_many_bits_is_no_cause():
    state, where = decided((4, 4))
    found = {d.name: d for d in ranked_damage(state, where)}
    assert found["embed"].damage_db < decided_gain((1, 2))
    state, where = decided((8, 8))
    assert ranked_damage(state, where) == []


def decided_gain(bits):
    state, where = decided(bits)
    return ranked_damage(state, where)[0].damage_db


@pytest.mark.parametrize("columns", [24, 40])
def test_a_table_that_fits_no_grid_is_left_out(columns):
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"], name="embed"),
        helper.make_node("Tanh", ["e"], ["y"], name="tanh"),
    ]
    io = [("ids", INT64, [1, "length"])], [("y", FLOAT, [1, "length", columns])]
    state, where = decided((1, 2), build(nodes, *io, {"w": table(columns=columns).astype(np.float32)}))
    assert table_damages(state, where.trial, 10.0) == []
