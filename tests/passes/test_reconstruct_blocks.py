from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from qcompiler.budget import Budget
from qcompiler.errors import UsageError
from qcompiler.passes import IMPROVING
from qcompiler.plan import Role
from qcompiler.registry import make_pass
from qcompiler.training import measure, walk
from tests.compiling import run_passes, samples, start
from tests.models import conv_net
from tests.training.lowbits import low_bit_state

QUICK = "reconstruct-blocks{ways=straight-through+flexround,steps=8,rate=0.02,rows=8,joint=0}"


@pytest.fixture(scope="module")
def case():
    proto = conv_net(channels=8)
    return low_bit_state(proto, 2, samples(start(proto).model, count=16))


@pytest.fixture(scope="module")
def done(case):
    state, where = case
    return make_pass(QUICK).run(state, where)


def figures(report):
    return {m.name: m.value for m in report.metrics}


def test_the_model_is_nearer_on_acceptance_samples_and_the_report_shows_every_contest(case, done):
    state, _ = case
    assert done.report.changed
    found = figures(done.report)
    assert found["distance on acceptance samples behind the blocks"] < found["distance on acceptance samples before"]
    (table,) = done.report.tables
    assert table.columns == ("as it was", "straight-through", "flexround")
    assert len(table.rows) == found["blocks"] > 1
    for row in table.rows:
        assert min(v for v in row.values if v is not None) == row.values[table.columns.index(row.note)]
    wins = sum(v for name, v in found.items() if name.startswith("won by "))
    assert wins == found["blocks"]
    assert found["mini-batches in blocks"] == 8 * 2 * found["blocks"]
    changed = [t for k, t in done.state.plan.tensors.items() if t is not state.plan.tensors.get(k)]
    assert changed
    assert all(t.decided_by[-1] == "reconstruct-blocks" for t in changed)


def test_corrections_that_were_trained_stay(case, done):
    _, where = case
    after = run_passes(done.state, where, "correct-bias")
    trained = [t for t in done.state.plan.tensors.values() if t.role is Role.BIAS and "reconstruct" in t.reason]
    assert trained
    assert all(after.plan.tensors[t.name] is t for t in trained)


def test_codes_are_levels_and_scales_keep_their_shape(case, done):
    state, _ = case
    for name, before in state.plan.tensors.items():
        after = done.state.plan.tensors[name]
        if before.role is Role.WEIGHT:
            assert after.scale.shape == before.scale.shape
            assert after.codes is None or set(np.unique(after.codes)) <= set(before.levels.tolist())


def test_nothing_changes_where_acceptance_samples_say_no(case, monkeypatch):
    state, where = case
    losses = iter([1.0, 1.0])
    monkeypatch.setattr(measure, "held_out_loss", lambda setup, binding: next(losses))
    found = make_pass(QUICK).run(state, where)
    assert found.state is state
    assert not found.report.changed
    assert "did not help" in found.report.notes[-1]


@pytest.mark.parametrize(("losses", "kept"), [([3.0, 2.0, 1.0], "network"), ([3.0, 1.0, 2.0], "blocks")])
def test_the_training_of_the_whole_network_is_kept_if_it_is_better(case, monkeypatch, losses, kept):
    state, where = case
    given = iter(losses)
    monkeypatch.setattr(measure, "held_out_loss", lambda setup, binding: next(given))
    monkeypatch.setattr(walk, "joint_steps", lambda setup, work, rows: 5)
    found = make_pass("reconstruct-blocks{ways=straight-through,steps=2,rows=8}").run(state, where)
    assert found.report.changed
    assert "whole network: 5 mini-batches" in found.report.notes
    reasons = [t.reason for t in found.state.plan.tensors.values() if t.role is Role.WEIGHT]
    assert all(r.endswith("; trained") for r in reasons) == (kept == "network")


def test_a_spent_budget_leaves_the_plan_alone(case):
    state, where = case
    budget = Budget()
    budget.stop()
    found = make_pass("reconstruct-blocks").run(state, replace(where, budget=budget))
    assert found.state is state
    assert "interrupted" in found.report.notes[0]


def test_without_samples_it_says_what_it_needs(case):
    state, where = case
    found = make_pass("reconstruct-blocks").run(state, replace(where, acceptance=None))
    assert not found.report.changed
    assert "--data" in found.report.skipped[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ways=lsq", "'lsq' is none of straight-through, flexround, soft-bit"),
        ("ways=flexround/0", "'flexround/0' is none of"),
        ("layers=0", "at least 1"),
        ("rows=0", "at least 1"),
        ("rate=0.0", "above 0"),
        ("drop=1.5", "from 0 to 1"),
        ("steps=-1", "not negative"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_pass(f"reconstruct-blocks{{{options}}}")


def test_it_belongs_to_the_highest_effort_and_loads_without_torch():
    assert IMPROVING[3][-1] == "reconstruct-blocks"
    assert "reconstruct-blocks" not in IMPROVING[2]
    code = "import sys, qcompiler.passes.reconstruct_blocks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_of_parametrizations_are_those_that_exist():
    from qcompiler.passes.reconstruct_blocks import PARAMETRIZATIONS
    from qcompiler.training.reconstruction import WAYS

    assert tuple(WAYS) == PARAMETRIZATIONS
