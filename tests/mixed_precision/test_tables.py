"""Bytes of tables against bytes of layers: what is predicted, what is chosen, and what stays as it was asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from qcompiler.mixed_precision.divergence import Divergence
from qcompiler.mixed_precision.tables import table_trade
from qcompiler.model.edit import clone, replace_constant
from qcompiler.passes.allocate_bits import SOLVED_SHARE
from qcompiler.recipe import Floors
from tests.compiling import context, run_passes, start
from tests.models import FLOAT, build
from tests.passes.tables import COLUMNS, INT64, sentence_data, table

ROWS, OUTPUTS, PRODUCTS = 4000, 512, 8
GRAPH = 5_000
LIMIT = 140_000


def tokens_net(spread: float = 1.0):
    """``ids`` -> rows of ``w`` -> Tanh -> matrices as large as the table; ``spread`` of the rows."""
    rows = (table(ROWS) - table(ROWS).mean(0)) * spread + 1
    mixes = np.random.default_rng(1).standard_normal((PRODUCTS, COLUMNS, OUTPUTS)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"], name="embed"),
        helper.make_node("Tanh", ["e"], ["t"], name="tanh"),
        *(helper.make_node("MatMul", ["t", f"mix{n}"], [f"y{n}"], name=f"project{n}") for n in range(PRODUCTS)),
    ]
    outputs = [(f"y{n}", FLOAT, [1, "length", OUTPUTS]) for n in range(PRODUCTS)]
    constants = {"w": rows.astype(np.float32), **{f"mix{n}": mix for n, mix in enumerate(mixes)}}
    return build(nodes, [("ids", INT64, [1, "length"])], outputs, constants)


def file_size(state):
    """Return the bytes of a file with whole bytes for the matrices and the planned rows."""
    rows = state.plan.tensors["w"].rows
    return GRAPH + COLUMNS * OUTPUTS * PRODUCTS + rows.stored_bytes


def decided(proto, *passes, **asked):
    where = context("x86", sentence_data(length=24))
    recipe = replace(where.recipe, embedding_bits=(1, 3), floors=Floors(max_size_bytes=LIMIT), allocation="limits")
    where = replace(where, recipe=replace(recipe, **asked), size=file_size)
    return run_passes(start(proto), where, "place", "observe", "embedding-bits", *passes), where


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_loss_of_a_table_is_predicted_at_other_widths(width):
    state, where = decided(tokens_net())
    trade = table_trade(state, where)
    (search,) = trade.searches
    bits = np.full(ROWS, width, np.uint8)
    changed = clone(state.model)
    replace_constant(changed.graph.initializers["w"], search.found.codes(bits).decode())
    predicted = trade.slopes[0] * search.lost(bits)
    assert Divergence(state.model, where.calibration, (), 1)(changed) == pytest.approx(predicted, rel=0.5)


def test_a_table_that_matters_more_gets_more_of_the_bytes():
    sizes = []
    for spread in (0.02, 1.0):
        state, _ = decided(tokens_net(spread), "allocate-bits")
        sizes.append(state.plan.tensors["w"].rows.stored_bytes)
    assert sizes[0] < 0.9 * sizes[1]


def test_layers_and_tables_together_lose_least():
    state, where = decided(tokens_net())
    after = run_passes(state, where, "allocate-bits")
    trade = table_trade(state, where)
    chosen = after.plan.tensors["w"].rows
    assert after.bit_search.fixed_bytes + after.bit_search.chosen.stored_bytes <= LIMIT
    assert after.plan.tensors["w"].decided_by[-1] == "allocate-bits"
    lost = SOLVED_SHARE * after.bit_search.chosen.loss + trade.slopes[0] * trade.searches[0].lost(chosen.bits)
    other = after.bit_search.fixed_bytes - chosen.stored_bytes - trade.searches[0].operator_bytes
    for size in trade.sizes():
        layers = after.bit_search.best_within(LIMIT - other - size)
        assert layers is None or lost <= SOLVED_SHARE * layers.loss + trade.loss(size) + 1e-6


@pytest.mark.parametrize("limit", [LIMIT, 170_000, 215_000])
def test_what_layers_leave_over_goes_to_the_tables(limit):
    state, _ = decided(tokens_net(), "allocate-bits", floors=Floors(max_size_bytes=limit))
    size = state.bit_search.fixed_bytes + state.bit_search.chosen.stored_bytes
    one_bit_of_a_layer = COLUMNS * OUTPUTS // 8
    assert limit - one_bit_of_a_layer / 4 <= size <= limit


@pytest.mark.parametrize("asked", [{"embedding_bytes": 80_000}, {"embedding_bits": (4, 4)}])
def test_what_is_prescribed_is_not_traded(asked):
    state, where = decided(tokens_net(), **asked)
    before = state.plan.tensors["w"].rows
    assert table_trade(state, where) is None
    after = run_passes(state, where, "allocate-bits")
    assert after.plan.tensors["w"].rows is before


def test_without_samples_the_share_of_the_tables_stays():
    state, where = decided(tokens_net())
    assert table_trade(state, replace(where, calibration=None)) is None


def test_unmeasured_layers_are_not_traded_against_measured_tables():
    state, where = decided(tokens_net())
    after = run_passes(state, where, "allocate-bits{measured=false}")
    assert after.plan.tensors["w"].rows is state.plan.tensors["w"].rows
