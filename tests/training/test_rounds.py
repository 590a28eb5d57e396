"""Rounds of training, and layers that are solved again behind compressed ones."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.budget import Budget  # noqa: E402
from qcompiler.errors import UsageError  # noqa: E402
from qcompiler.executor.binding import EMPTY, binding_of  # noqa: E402
from qcompiler.executor.gain import held_out_gain  # noqa: E402
from qcompiler.executor.setup import prepare_search  # noqa: E402
from qcompiler.plan import Role  # noqa: E402
from qcompiler.registry import make_pass  # noqa: E402
from qcompiler.training.compressor import LevelCompressor  # noqa: E402
from qcompiler.training.driver import Schedule, Task  # noqa: E402
from qcompiler.training.measure import held_out_distance  # noqa: E402
from qcompiler.training.rounds import Rounds  # noqa: E402
from tests.compiling import samples, start  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.passes.sparse import pruned  # noqa: E402
from tests.training.lowbits import low_bit_state  # noqa: E402


@pytest.fixture(scope="module")
def case():
    proto = conv_net(channels=16)
    state, where = low_bit_state(proto, 3, samples(start(proto).model, count=32))
    setup = prepare_search(state, where)
    assert not isinstance(setup, str), setup
    return state, where, setup


def rounds_of(case, rate, count=3, **task):
    state, _, setup = case
    rounds = Rounds(setup, LevelCompressor(state, setup.executor))
    given = Task(
        samples=setup.samples,
        outputs=setup.loss.outputs,
        classes=setup.loss.classes,
        base=binding_of(state, setup.executor),
        schedule=Schedule(steps=30, batch_rows=16, learning_rate=rate),
        **task,
    )
    rounds.run(given, count)
    return rounds, given


def test_what_rounds_find_is_the_best_they_have_seen(case):
    rounds, task = rounds_of(case, 0.02)
    assert rounds.kept >= 1
    assert rounds.steps == 30
    assert len(rounds.distances) == 4
    reached = held_out_distance(case[2], rounds.compressor.compressed(task.base))
    assert reached == min(rounds.distances) < rounds.distances[0]


def test_a_round_that_loses_is_taken_back_and_the_next_is_slower(case):
    seen = []
    rounds, task = rounds_of(case, 1000.0, count=2, progress=seen.append)
    assert rounds.rates == [1000.0, 250.0]
    assert rounds.kept == 0
    assert held_out_distance(case[2], rounds.compressor.compressed(task.base)) == rounds.distances[0]
    assert seen == list(range(1, 31))


def test_a_round_that_gains_is_followed_by_one_at_half_the_rate(case):
    rounds, _ = rounds_of(case, 0.02, count=2)
    assert rounds.distances[1] < rounds.distances[0]
    assert rounds.rates == [0.02, 0.01]


def test_every_round_has_its_part_of_the_time(case):
    rounds, _ = rounds_of(case, 0.02, count=2, gone=lambda: 1.0)
    assert rounds.distances == [rounds.distances[0]] * 3  # the time is over: nothing moves
    rounds, _ = rounds_of(case, 0.02, count=2, gone=lambda: 0.5)
    first, second = rounds.distances[1:]
    assert first == rounds.distances[0]  # its half is over
    assert second < first  # and this one's has just begun
    assert [record.steps for record in rounds.records] == [0, 15]


def test_minutes_are_used_up_whatever_the_first_batches_took(case):
    state, where, _ = case
    told = []
    where = replace(where, recipe=replace(where.recipe, fine_tune_minutes=0.03), progress=lambda *at: told.append(at))
    started = time.monotonic()
    report = make_pass("fine-tune").run(state, where).report
    assert 1.8 <= time.monotonic() - started < 20
    assert next(m.value for m in report.metrics if m.name == "mini-batches") == len(told) > 8
    assert {total for _, _, total in told} == {1}  # seconds, rounded down


@pytest.mark.parametrize(("sparsity", "rounds"), [(0.0, 4), (0.5, 1)])
def test_pruned_weights_are_trained_in_one_round(case, sparsity, rounds):
    state, where, _ = case
    state = pruned(state, sparsity, levels=np.arange(-3, 4, dtype=np.int8)) if sparsity else state
    report = make_pass("fine-tune{steps=8}").run(state, where).report
    assert sum(m.name.startswith("learning rate, round") for m in report.metrics) == rounds


def test_no_round_begins_when_the_time_is_over(case):
    assert rounds_of(case, 0.02, finished=lambda: True)[0].records == []


def test_the_distance_is_zero_for_the_float_model_and_weighs_rows_by_roots(case):
    state, _, setup = case
    assert held_out_distance(setup, EMPTY) == 0.0
    (name,) = setup.held_out_loss.outputs
    found, wanted = (
        setup.executor.run(setup.held_out, (name,), binding=b)[name].double()
        for b in (binding_of(state, setup.executor), EMPTY)
    )
    if name in setup.held_out_loss.classes:
        there, here = torch.log_softmax(wanted, -1), torch.log_softmax(found, -1)
        expected = (there.exp() * (there - here)).sum(-1).sqrt().mean()
    else:
        expected = (found - wanted).square().sum() / wanted.square().sum()
    assert held_out_distance(setup, binding_of(state, setup.executor)) == pytest.approx(float(expected), rel=1e-6)


def test_solving_on_the_prefix_brings_the_model_nearer(case):
    state, where, setup = case
    found = make_pass("solve-on-prefix").run(state, where)
    assert found.report.changed
    before, after = (held_out_distance(setup, binding_of(s, setup.executor)) for s in (state, found.state))
    assert after < before
    for entry in found.state.plan.tensors.values():
        if entry.role is Role.WEIGHT and entry.decided_by[-1:] == ("solve-on-prefix",):
            assert entry.codes is not None
            assert np.isin(entry.codes, entry.levels).all()
    biases = [t for t in found.state.plan.tensors.values() if t.role is Role.BIAS]
    assert any(t.decided_by[-1:] == ("solve-on-prefix",) for t in biases)


def test_held_out_errors_never_grow(case):
    state, where, _ = case
    (table,) = make_pass("solve-on-prefix").run(state, where).report.tables
    assert len(table.rows) >= 2
    assert all(row.values[1] >= row.values[0] for row in table.rows)
    assert any(row.values[1] > row.values[0] for row in table.rows)


def test_a_spent_budget_leaves_all_layers_as_they_are(case):
    state, where, _ = case
    budget = Budget()
    budget.stop()
    found = make_pass("solve-on-prefix").run(state, replace(where, budget=budget))
    assert found.state is state
    assert "as they were" in found.report.notes[0]


def test_eight_bits_are_left_alone(case):
    state, where, _ = case
    wide = [
        replace(t, spec=replace(t.spec, num_bits=8), levels=None, codes=None)
        for t in state.plan.tensors.values()
        if t.role is Role.WEIGHT and t.spec is not None
    ]
    state = replace(state, plan=state.plan.with_tensors(*wide))
    found = make_pass("solve-on-prefix").run(state, where)
    assert found.state is state
    assert "fewer than 8 bits" in found.report.notes[0]


@pytest.mark.parametrize("options", ["solvers=magic", "shares=none", "shares=-1"])
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError, match="solve-on-prefix"):
        make_pass(f"solve-on-prefix{{{options}}}")


def test_it_loads_without_torch():
    code = "import sys, qcompiler.passes.solve_on_prefix; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gain_on_acceptance_samples_comes_with_its_standard_error(case):
    state, _, setup = case
    base, exact = binding_of(state, setup.executor), EMPTY
    gain, error = held_out_gain(setup, base, exact)
    outputs = setup.held_out_loss.outputs
    rows = slice(0, len(next(iter(setup.held_out.values()))))
    losses = setup.held_out_loss(setup.executor.run(setup.held_out, outputs, binding=base), rows).reshape(-1).numpy()
    assert gain == pytest.approx(losses.mean(), rel=1e-4)
    assert error == pytest.approx(losses.std(ddof=1) / np.sqrt(len(losses)), rel=1e-3)
    assert held_out_gain(setup, base, base) == (0.0, 0.0)
