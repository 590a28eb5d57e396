"""The parts of a search: candidates, stops, means, the bench."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.activation_grids import grid_groups  # noqa: E402
from qcompiler.executor.binding import FakeQuantize, binding_of  # noqa: E402
from qcompiler.executor.loss import DistillationLoss  # noqa: E402
from qcompiler.lowering import weight_codes  # noqa: E402
from qcompiler.search.bench import MIN_GAIN, Bench, split_rows  # noqa: E402
from qcompiler.search.means import channel_means, quantized_mean  # noqa: E402
from qcompiler.search.moves import WeightMoves, group_moves  # noqa: E402
from qcompiler.search.pace import GRIDS, choose_pace  # noqa: E402
from qcompiler.search.units import searched_units  # noqa: E402
from tests.compiling import Fixed  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.search.nets import fire_net, searched_state, setup_of, with_solved_codes  # noqa: E402


@pytest.fixture(scope="module")
def fire():
    state, where = searched_state(fire_net())
    return state, where, setup_of(state, where)


def weights_of(state, setup):
    return [u.weight for u in searched_units(state, setup.executor) if u.weight is not None]


# -- stops -------------------------------------------------------------------------------------------


def test_stops_come_in_the_order_of_the_network_and_hold_everything_once(fire):
    state, _, setup = fire
    units = searched_units(state, setup.executor)
    assert [u.step for u in units] == sorted(u.step for u in units)
    assert [u.weight.entry.name for u in units if u.weight is not None] == ["w1", "w2", "w3", "w4", "w5"]
    grouped = [name for u in units for name in u.group]
    assert sorted(grouped) == sorted(name for group in grid_groups(state.model, state.plan) for name in group)
    assert units[0].group == ("x",)
    assert next(u for u in units if u.name == "w1").group[0] == "r1"


def test_groups_are_what_the_runtime_moves_and_not_what_is_equal_by_chance(fire):
    state, _, _ = fire
    groups = grid_groups(state.model, state.plan)
    assert ("r1", "m") in groups
    assert ("r2", "r3", "j") in groups
    tensors = state.plan.tensors
    alike = replace(tensors["r4"], scale=tensors["r1"].scale, zero_point=tensors["r1"].zero_point)
    assert grid_groups(state.model, state.plan.with_tensors(alike)) == groups
    apart = replace(tensors["m"], scale=tensors["m"].scale * np.float32(2))
    assert ("r1",) in grid_groups(state.model, state.plan.with_tensors(apart))


def test_wider_weights_are_left_alone_only_where_there_are_narrow_ones(fire):
    state, _, setup = fire
    entry = state.plan.tensors["w2"]
    wide = replace(entry, spec=replace(entry.spec, num_bits=8), levels=None)
    mixed = replace(state, plan=state.plan.with_tensors(wide))
    assert "w2" not in [w.entry.name for w in weights_of(mixed, setup)]
    eight, where = searched_state(fire_net())
    plain = [
        replace(t, spec=replace(t.spec, num_bits=8), levels=None)
        for t in eight.plan.tensors.values()
        if t.name.startswith("w")
    ]
    eight = replace(eight, plan=eight.plan.with_tensors(*plain))
    assert len(weights_of(eight, setup_of(eight, where))) == 5


# -- candidates --------------------------------------------------------------------------------------


def test_a_weight_is_rounded_to_its_own_levels(fire):
    state, _, setup = fire
    moves = WeightMoves(weights_of(state, setup)[0], state, "test")
    same = moves.rounded(1.0)
    array = setup.executor.parameters["w1"].numpy()
    assert np.array_equal(same.codes, weight_codes(array, moves.entry))
    assert np.array_equal(same.scale, moves.entry.scale)
    other = moves.rounded(0.8, 0.2)
    assert set(np.unique(other.codes)) <= set(moves.levels.tolist())
    assert np.allclose(other.scale, moves.entry.scale * 0.8)
    assert other.decided_by[-1] == "test"


def test_codes_of_a_solver_are_kept_with_the_scales_that_fit_them(fire):
    state, _, setup = fire
    solved = with_solved_codes(state)
    weight = weights_of(solved, setup)[0]
    moves = WeightMoves(weight, solved, "test")
    assert moves.solved
    assert np.array_equal(moves.rescaled(1.1).codes, weight.entry.codes)
    fitted = moves.refitted()
    assert np.array_equal(fitted.codes, weight.entry.codes)
    codes, rows = (a.reshape(16, -1).astype(np.float64) for a in (weight.entry.codes, weight.array))
    wanted = (codes * rows).sum(1) / np.square(codes).sum(1)
    positive = wanted > 0
    assert positive.any()
    assert np.allclose(fitted.scale[positive], wanted[positive], rtol=1e-5)
    assert (fitted.scale > 0).all()


def test_scales_stay_large_enough_for_the_bias(monkeypatch, fire):
    state, _, setup = fire
    weight = weights_of(state, setup)[0]
    floor = np.full((1, 16), 10.0)
    monkeypatch.setattr("qcompiler.search.moves.row_floor", lambda state, weight: floor)
    assert (WeightMoves(weight, state, "test").rescaled(0.5).scale == 10.0).all()


@pytest.mark.parametrize("activations", [4, 8])
def test_ranges_keep_an_integer_zero_point_their_limits_and_one_grid(activations):
    state, _ = searched_state(conv_net(channels=16), activations=activations)
    for group in grid_groups(state.model, state.plan):
        moves = group_moves(state.model, state.plan, group, "test")
        for low, high in ((0.7, 1.4), (1.3, 0.6), (1.5, 1.5)):
            entries = moves.clipped(low, high)
            assert {e.name for e in entries} == set(group)
            assert len({(float(e.scale), int(e.zero_point)) for e in entries}) == 1
            first = entries[0]
            assert first.zero_point.dtype == np.int32
            assert 0 <= int(first.zero_point) < 2**activations
            assert first.clip[1] <= moves.limits[1]
            assert first.clip[0] >= moves.limits[0]
    clipped = group_moves(state.model, state.plan, ("d6",), "test")
    assert clipped.limits == (0.0, 6.0)


# -- means -------------------------------------------------------------------------------------------


def test_the_mean_of_an_output_follows_from_the_mean_of_the_quantized_input():
    state, where = searched_state(fire_net(), 3, 4)
    setup = setup_of(state, where)
    bench = Bench(setup, state, 8)
    step = next(i for i, s in enumerate(setup.executor.steps) if s.name == "first")
    mean = quantized_mean(bench.search, step, bench.rows, setup.axes)
    weight = bench.search.binding.parameters["w1"]
    found = channel_means(setup.executor.steps[step], mean, weight)
    plain = replace(bench.search.binding, biases=_without(bench.search.binding.biases, "first"))
    with torch.no_grad():
        made = setup.executor.run(bench.samples, ("c1",), binding=plain)
    wanted = made["c1"].double().mean((0, 2, 3)).numpy()
    assert np.abs(wanted).max() > 0
    first = setup.executor.parameters["b1"].numpy()
    np.testing.assert_allclose(found, wanted - first, rtol=1e-4, atol=1e-5)


def _without(values, name):
    return {k: v for k, v in values.items() if k != name}


# -- the bench ---------------------------------------------------------------------------------------


def test_rows_to_confirm_on_are_no_rows_to_search_on():
    samples = {"x": torch.arange(10.0).reshape(10, 1), "k": torch.tensor(3.0)}
    searched, confirming = split_rows(samples, 100)
    assert confirming["x"].flatten().tolist() == [3, 7]
    assert searched["x"].flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    assert searched["k"] == 3
    few, _ = split_rows(samples, 3)
    assert len(few["x"]) == 3
    assert set(few["x"].flatten().tolist()) <= set(searched["x"].flatten().tolist())
    alone, same = split_rows({"x": torch.ones(1, 1)}, 4)
    assert len(alone["x"]) == len(same["x"]) == 1


def loud_where_confirmed():
    """Return a bench whose rows to confirm on reach ten times as far as those to search on."""
    state, where = searched_state(fire_net(), 4, 4, rows=16)
    quiet = [dict(where.calibration[i]) for i in range(16)]
    rows = [{"x": r["x"] * (1.0 if i % 4 == 3 else 0.1)} for i, r in enumerate(quiet)]
    where = replace(where, calibration=Fixed(rows))
    return Bench(setup_of(state, where), state, 12), state


def test_what_is_better_only_where_it_was_searched_is_refused():
    bench, state = loud_where_confirmed()
    entries = group_moves(state.model, state.plan, ("r1", "m"), "test").clipped(0.3, 0.3)
    level = float(bench.losses(0, [entries])[0])
    assert level < bench.level * (1 - MIN_GAIN)
    before = bench.plan
    assert not bench.take(0, entries, level)
    assert bench.plan is before
    assert bench.refused == 1


def test_what_gains_next_to_nothing_is_refused_and_a_real_gain_is_taken(fire):
    state, _, setup = fire
    bench = Bench(setup, state, 18)
    weight = next(w for w in weights_of(state, setup) if w.entry.name == "w1")
    entries = [(WeightMoves(weight, state, "test").rounded(f),) for f in (0.7, 0.8, 1.2, 1.3, 1.5)]
    losses = bench.losses(0, entries)
    best = int(np.argmin(losses))
    assert losses[best] < bench.level * (1 - MIN_GAIN)
    assert not bench.take(0, entries[best], bench.level * (1 - MIN_GAIN / 2))
    assert bench.take(0, entries[best], float(losses[best]))
    assert bench.level == losses[best]
    assert bench.search.loss() == pytest.approx(bench.level, rel=1e-6)
    assert bench.confirm.loss() == pytest.approx(bench.confirmed, rel=1e-6)
    after = binding_of(replace(state, plan=bench.plan), setup.executor)
    assert torch.equal(after.parameters["w1"], bench.search.binding.parameters["w1"])


def test_a_candidate_that_is_no_number_never_wins(fire):
    state, _, setup = fire
    bench = Bench(setup, state, 4)
    entry = bench.plan.tensors["w1"]
    broken = replace(entry, scale=np.full_like(entry.scale, np.nan))
    assert bench.losses(0, [(broken,)])[0] == np.inf


def test_the_error_of_class_scores_can_count_beside_their_divergence(fire):
    _, _, setup = fire
    kinds = [DistillationLoss(setup.executor, setup.samples, setup.axes, error_weight=w) for w in (0.0, 1.0)]
    scores = setup.executor.run(setup.samples)["y"]
    moved, rows = {"y": scores + 1.0}, slice(0, len(scores))
    plain, both = (float(loss(moved, rows).mean()) for loss in kinds)
    assert plain == pytest.approx(0.0, abs=1e-6)  # a divergence does not see a common shift
    power = float(scores.square().sum(1).mean())
    assert both == pytest.approx(scores.shape[1] / power, rel=1e-5)


def test_the_values_of_a_grid_are_those_of_the_plan(fire):
    state, _, setup = fire
    bench = Bench(setup, state, 4)
    entries = group_moves(state.model, state.plan, ("r1", "m"), "test").clipped(1.0, 0.5)
    bench.adopt(entries, 1.0, 1.0)
    grid = bench.search.binding.values["m"]
    assert isinstance(grid, FakeQuantize)
    assert float(grid.scale) == float(bench.plan.tensors["m"].scale)
    assert bench.plan.tensors["r1"].scale == bench.plan.tensors["m"].scale


# -- pace --------------------------------------------------------------------------------------------


def test_more_time_means_a_finer_grid_and_more_rows(fire):
    state, _, setup = fire
    units = searched_units(state, setup.executor)
    steps = [1e-3] * len(setup.executor.steps)
    paces = [choose_pace(units, steps, 2000, seconds) for seconds in (0.0, 10.0, 100.0, 1e6)]
    fineness = [(-GRIDS.index(p.grid), p.rows) for p in paces]
    assert fineness == sorted(fineness)
    assert paces[0].grid is GRIDS[-1]
    assert paces[-1].grid is GRIDS[0]
    assert paces[-1].rows > paces[0].rows
    assert choose_pace(units, steps, 5, 1e6).rows == 5
