"""Which form a product gets: by its rows, by what forms cost, and never a dearer one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from qcompiler.blockwise import costs_of, form_of, with_form
from qcompiler.errors import QCompileError
from qcompiler.passes import choose_matmuls
from qcompiler.passes.choose_matmuls import DYNAMIC, STATIC, ChooseMatmuls
from qcompiler.plan import CompressionPlan, Precision
from qcompiler.protocols import MatMulCost, MatMulForm
from qcompiler.recipe import MatchRule
from qcompiler.registry import load_target
from qcompiler.runtime import latency_db
from qcompiler.runtime.matmul_forms import FLOAT_FORM, MatMulShape, form_costs, form_errors
from tests.compiling import context, lowered, run_passes, runtime_ops, samples, start
from tests.models import FLOAT, build

make = helper.make_node
BLOCKS = MatMulForm(Precision.BLOCKWISE, 4, 32, 4)


def product(rows=32, width=1024, rank=3):
    """One product of tokens, ``node``."""
    weight = np.random.default_rng(0).standard_normal((width, 64)).astype(np.float32)
    node = make("MatMul", ["x", "w"], ["y"], name="node")
    lead = [1] * (rank - 2)
    return build([node], [("x", FLOAT, [*lead, rows, width])], [("y", FLOAT, [*lead, rows, 64])], {"w": weight})


def asked(proto, target="x86", rules=(), *, decode=False, effort=1, bits="W4A8:uniform", data=2):
    state = start(proto)
    where = context(target, samples(state.model, data, free=7) if data else None, rules, bits)
    return state, replace(where, recipe=replace(where.recipe, decode=decode, effort=effort))


def chosen(*arguments, **options):
    state, where = asked(*arguments, **options)
    result = ChooseMatmuls().run(state, where)
    return form_of(result.state.plan, "node"), result.report


@pytest.mark.parametrize("bits", ["W2A8:uniform", "W3A8:uniform", "W4A8:uniform"])
def test_token_by_token_weights_are_decoded_in_the_kernel(bits):
    form, report = chosen(product(), decode=True, bits=bits)
    assert form.precision is Precision.BLOCKWISE
    assert form.num_bits >= int(bits[1])
    (row,) = report.tables[0].rows
    assert "1 x 1024 by 1024 x 64" in row.name
    assert row.values[2] < row.values[0]


def test_for_many_rows_it_is_not():
    assert chosen(product(rows=32))[0] == DYNAMIC
    assert chosen(product(rows=1))[0].precision is Precision.BLOCKWISE


def test_rows_are_those_of_the_samples_where_the_model_leaves_them_open():
    proto = product()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[1].dim_param = "tokens"
    _, report = chosen(proto, data=2)
    assert "of 7 x 1024" in report.tables[0].rows[0].name
    form, report = chosen(proto, data=0)
    assert form is None
    assert report.skipped[0].tensor == "node"


def test_a_processor_without_dot_products_never_decodes_in_the_kernel():
    for bits in ("W2A8:uniform", "W4A8:uniform", "W8A8"):
        form, _ = chosen(product(), "arm:cortex-a72", decode=True, bits=bits)
        assert form.precision is not Precision.BLOCKWISE
    assert chosen(product(), "arm:cortex-a76", decode=True)[0].precision is Precision.BLOCKWISE


def test_targets_without_a_table_choose_nothing():
    assert chosen(product(), "reference", decode=True)[0] is None


@given(
    st.dictionaries(
        st.sampled_from([DYNAMIC, STATIC, BLOCKS, replace(BLOCKS, block_size=128), replace(BLOCKS, num_bits=8)]),
        st.floats(0.01, 60),
    )
)
def test_a_dearer_form_is_never_taken(costs):
    form = ChooseMatmuls()._choice(costs)
    if form is not None and form.precision is Precision.BLOCKWISE:
        assert costs[form] < min(1.0, costs.get(DYNAMIC, 1.0))
        assert costs[form] == min(c for f, c in costs.items() if f.precision is Precision.BLOCKWISE)


@pytest.mark.parametrize("target", ["x86", "arm:cortex-a53", "arm:cortex-a72", "arm:cortex-a76", "arm:i8mm"])
def test_no_measured_point_of_a_table_is_chosen_against_its_own_figures(target):
    table = costs_of(load_target(target))
    points = {(p.rows, p.weights) for p in table}
    assert points
    for rows, weights in points:
        costs = {p.form: p.ratio for p in table if (p.rows, p.weights) == (rows, weights)}
        form = ChooseMatmuls()._choice(costs)
        if form.precision is Precision.BLOCKWISE:
            assert costs[form] < costs[DYNAMIC]


def test_rules_of_the_recipe_stand():
    for scheme in ("static", "dynamic", "weight_only"):
        assert chosen(product(), rules=(MatchRule(pattern="node", scheme=scheme),), decode=True)[0] is None


def test_fixed_grids_are_taken_where_the_model_answers_better_with_them():
    for better in (STATIC, DYNAMIC):
        state, where = asked(product(rows=32), bits="W8A8")
        trial = lambda s, better=better: 20.0 if form_of(s.plan, "node") == better else 15.0  # noqa: E731
        result = ChooseMatmuls().run(state, replace(where, trial=trial))
        assert form_of(result.state.plan, "node") == better
        assert result.report.tables[0].rows[0].note == ("integer" if better is STATIC else "dynamic")


def test_from_effort_2_on_forms_are_timed_once_and_the_times_decide(monkeypatch, tmp_path):
    monkeypatch.setattr(latency_db, "default_path", lambda: tmp_path / "latency.sqlite")
    calls = []

    def timed(forms, shape, **_):
        calls.append(shape)
        return {f: 1.0 if f == FLOAT_FORM else 0.1 if f == cheap else 0.5 for f in forms}

    monkeypatch.setattr(choose_matmuls, "form_costs", timed)
    target = load_target("x86")
    if not target.executes_here:
        pytest.skip("x86 is not this machine")
    cheap = BLOCKS
    assert chosen(product(rows=32), effort=2)[0] == cheap
    assert chosen(product(rows=32), effort=2)[0] == cheap
    assert calls == [MatMulShape(32, 1024, 64)]


def test_what_was_chosen_is_what_runs():
    state, where = asked(product(), decode=True)
    state = run_passes(state, where, "choose-matmuls", "place", "observe", "scale-weights", "calibrate")
    assert state.plan.nodes["node"].precision is Precision.BLOCKWISE
    assert runtime_ops(lowered(state, where).model) == ["MatMulNBits"]


def test_forms_are_timed_and_rounded():
    forms = [FLOAT_FORM, DYNAMIC, STATIC, BLOCKS]
    shape = MatMulShape(4, 64, 32)
    assert set(form_costs(forms, shape, seconds=0.01)) == set(forms)
    errors = form_errors([*forms, replace(BLOCKS, num_bits=8)], shape)
    assert errors[FLOAT_FORM] < 1e-6 < errors[replace(BLOCKS, num_bits=8)] < errors[DYNAMIC] < errors[BLOCKS] < 0.2


def test_a_form_that_the_runtime_does_not_know_is_left_out():
    assert set(form_costs([FLOAT_FORM, replace(BLOCKS, block_size=24)], MatMulShape(1, 48, 8), seconds=0.01)) == {
        FLOAT_FORM
    }


def test_forms_in_plans():
    plan = CompressionPlan()
    for form in (DYNAMIC, STATIC, BLOCKS):
        assert form_of(with_form(plan, "node", form), "node") == form
    with pytest.raises(QCompileError, match="which is no form"):
        form_of(plan.with_choice("form of node", "blockwise 3 bits"), "node")


def test_the_nearest_point_counts():
    near, far = MatMulCost(DYNAMIC, 1, 1 << 20, 0.3), MatMulCost(DYNAMIC, 128, 1 << 20, 0.9)
    assert choose_matmuls._table_costs((near, far), MatMulShape(2, 1024, 1024)) == {DYNAMIC: 0.3}
    assert choose_matmuls._table_costs((near, far), MatMulShape(64, 1024, 1024)) == {DYNAMIC: 0.9}
