"""joint-clip-search: where it starts, what it takes, and that grids stay what can be stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.activation_grids import grid_groups, same_grid  # noqa: E402
from qcompiler.budget import Budget  # noqa: E402
from qcompiler.lowering import weight_codes  # noqa: E402
from qcompiler.plan import Role  # noqa: E402
from qcompiler.quant.grid import affine_grid, dequantize, quantize  # noqa: E402
from qcompiler.registry import make_pass  # noqa: E402
from qcompiler.search.bench import Bench, Clock  # noqa: E402
from qcompiler.search.joint import search_jointly  # noqa: E402
from qcompiler.search.lp_start import NORMS, best_ranges, between, stationary_norm  # noqa: E402
from qcompiler.search.moves import group_moves  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.search.nets import distance, fire_net, searched_state, setup_of, with_solved_codes  # noqa: E402

NAME = "joint-clip-search"


@pytest.fixture(scope="module")
def fire():
    return searched_state(fire_net(), 4, 4)


@pytest.fixture(scope="module")
def found(fire):
    return make_pass(NAME).run(*fire)


def test_a_parabola_gives_the_norm_only_where_it_opens_upward_inside_the_range():
    norms = np.asarray(NORMS)
    assert norms[0] == 2.0
    assert norms[-1] == 4.0
    assert stationary_norm(list((norms - 2.7) ** 2 + 1)) == pytest.approx(2.7)
    assert stationary_norm(list(-((norms - 2.7) ** 2))) is None
    assert stationary_norm(list((norms - 5.0) ** 2)) is None
    assert stationary_norm(list(np.where(norms > 3, np.inf, norms))) is None
    shares = between(2.7)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert sum(NORMS[i] * share for i, share in shares.items()) == pytest.approx(2.7)


def test_ranges_of_a_larger_norm_cut_off_less(fire):
    state, _ = fire
    moves = group_moves(state.model, state.plan, ("x",), "test")
    values = np.random.default_rng(0).laplace(size=20000).astype(np.float32)
    made = best_ranges(moves, values)
    widths = [entries[0].clip[1] - entries[0].clip[0] for entries in made]
    assert widths == sorted(widths)
    assert widths[-1] > widths[0]
    best = made[0][0]

    def error(scale, zero):
        scale, zero = np.asarray(scale, np.float32), np.asarray(zero, np.int32)
        return np.square(dequantize(quantize(values, scale, zero, (0, 15), None), scale, zero, None) - values).mean()

    wide = affine_grid(float(values.min()), float(values.max()), (0, 15))
    assert error(best.scale, best.zero_point) < error(*wide)


def test_the_model_comes_nearer_on_samples_it_has_not_seen(fire, found):
    state, where = fire
    assert found.report.changed
    assert distance(found.state, where) < 0.95 * distance(state, where)


def test_grids_can_be_stored_and_groups_keep_one(fire, found):
    state, _ = fire
    for group in grid_groups(state.model, state.plan):
        entries = [found.state.plan.tensors[name] for name in group]
        assert all(same_grid(e, entries[0]) for e in entries)
        assert entries[0].zero_point.dtype == np.int32
        assert 0 <= int(entries[0].zero_point) <= 15
    assert any(found.state.plan.tensors[n] is not t for n, t in state.plan.tensors.items() if t.role is Role.ACTIVATION)
    for entry in found.state.plan.tensors.values():
        if entry.role is Role.WEIGHT and entry.codes is not None:
            assert set(np.unique(entry.codes)) <= set(entry.levels.tolist())


def test_codes_of_a_solver_stay_only_their_scales_move(fire):
    state, where = fire
    solved = with_solved_codes(state)
    after = make_pass(NAME).run(solved, where)
    assert after.report.changed
    for name, entry in solved.plan.tensors.items():
        if entry.role is Role.WEIGHT:
            assert np.array_equal(weight_codes(entry.codes, after.state.plan.tensors[name]), entry.codes)


def test_what_does_not_hold_on_other_rows_is_not_taken(fire, monkeypatch):
    state, where = fire
    setup, made = setup_of(state, where), []

    class Doubtful(Bench):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.confirmed = 0.0
            made.append(self)

    monkeypatch.setattr("qcompiler.search.joint.Bench", Doubtful)
    result = search_jointly(setup, state, Clock(Budget(), 60.0), lambda done, total: None)
    assert not result.taken
    assert result.plan is state.plan
    assert made[0].refused > 0


def test_it_is_the_same_every_time(fire, found):
    again = make_pass(NAME).run(*fire)
    assert again.state.plan.digest() == found.state.plan.digest()
    assert replace(again.report, seconds=0) == replace(found.report, seconds=0)


def test_a_budget_that_is_spent_changes_nothing(fire):
    state, where = fire
    budget = Budget()
    budget.stop()
    found = make_pass(NAME).run(state, replace(where, budget=budget))
    assert found.state is state
    assert not found.report.changed


def test_a_clock_that_ends_at_once_returns_the_plan(fire):
    state, where = fire
    result = search_jointly(setup_of(state, where), state, Clock(Budget(), 0.0), lambda done, total: None)
    assert not result.taken
    assert result.plan is state.plan


def test_eight_bits_are_left_alone():
    state, where = searched_state(conv_net(channels=16))
    wide = [
        replace(t, spec=replace(t.spec, num_bits=8), levels=None)
        for t in state.plan.tensors.values()
        if t.role is Role.WEIGHT
    ]
    found = make_pass(NAME).run(replace(state, plan=state.plan.with_tensors(*wide)), where)
    assert not found.report.changed
    assert found.report.metrics == ()
