"""clip-round-search: it helps, it decides in order, it resumes, it stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.activation_grids import grid_groups, same_grid  # noqa: E402
from qcompiler.budget import Budget, Checkpoint  # noqa: E402
from qcompiler.errors import UsageError  # noqa: E402
from qcompiler.plan import Role  # noqa: E402
from qcompiler.registry import make_pass  # noqa: E402
from qcompiler.search.bench import Clock  # noqa: E402
from qcompiler.search.clip_round import Progress, search_clip_and_rounding  # noqa: E402
from qcompiler.search.pace import GRIDS, Pace  # noqa: E402
from tests.compiling import planned  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.passes.states import plan_bytes  # noqa: E402
from tests.search.nets import distance, fire_net, searched_state, setup_of, with_solved_codes  # noqa: E402

NAME = "clip-round-search"
COARSE = Pace(GRIDS[2], 18)


def small_net():
    return conv_net(channels=16)


class Until(Clock):
    """A clock that is over once a search has come to a stop; None is never."""

    def __init__(self, stop):
        super().__init__(Budget(), 1e9)
        self.stop, self.at = stop, 0

    def over(self):
        return self.stop is not None and self.at >= self.stop


def walked(state, where, stop=None, folder=None):
    clock = Until(stop)
    checkpoint = Checkpoint(folder, lambda: "the same")

    def tell(done, total):
        clock.at = done

    return search_clip_and_rounding(
        setup_of(state, where), state, Progress(clock, checkpoint, tell), COARSE
    ), checkpoint


@pytest.fixture(scope="module")
def fire():
    return searched_state(fire_net())


@pytest.fixture(scope="module")
def whole(fire):
    return walked(*fire)[0]


@pytest.mark.parametrize(("net", "bits", "activations"), [(fire_net, 3, 8), (fire_net, 4, 4), (small_net, 3, 8)])
def test_the_model_comes_nearer_on_samples_it_has_not_seen(net, bits, activations):
    state, where = searched_state(net(), bits, activations)
    found = make_pass(NAME).run(state, where)
    assert found.report.changed
    assert found.report.options["rows"] == 18
    assert distance(found.state, where) < 0.9 * distance(state, where)


def test_every_stop_lowers_the_loss_or_leaves_it(whole):
    assert whole.complete
    assert whole.after < whole.before
    for unit in whole.units:
        assert unit.after <= unit.before
        assert (unit.taken > 0) == (unit.after < unit.before)
    assert sum(u.taken for u in whole.units) >= 3


def test_what_is_decided_stays_whatever_comes_behind(fire, whole):
    state, where = fire
    part, _ = walked(state, where, stop=3)
    assert not part.complete
    assert len(part.units) == 3
    assert part.units == whole.units[:3]
    assert len(whole.units) > 3
    changed = [t for name, t in part.plan.tensors.items() if t is not state.plan.tensors.get(name)]
    assert changed
    for entry in changed:
        other = whole.plan.tensors[entry.name]
        assert np.array_equal(entry.scale, other.scale)
        assert np.array_equal(entry.codes, other.codes)
        assert np.array_equal(entry.correction, other.correction)


def test_a_stopped_search_goes_on_and_finds_the_same(fire, whole, tmp_path):
    state, where = fire
    part, _ = walked(state, where, stop=2, folder=tmp_path / "kept")
    assert not part.complete
    again, checkpoint = walked(state, where, folder=tmp_path / "kept")
    assert checkpoint.log.reused == 2
    assert plan_bytes(again.plan) == plan_bytes(whole.plan)
    for key in ("pace", "units", "before", "after", "tried", "refused", "complete"):
        assert getattr(again, key) == getattr(whole, key)


def test_groups_keep_one_grid(fire, whole):
    state, _ = fire
    moved = 0
    for group in grid_groups(state.model, state.plan):
        entries = [whole.plan.tensors[name] for name in group]
        assert all(same_grid(e, entries[0]) for e in entries)
        moved += len(group) > 1 and not same_grid(entries[0], state.plan.tensors[group[0]])
    assert moved


def test_a_bias_that_was_searched_is_not_corrected_again(fire, whole):
    state, where = fire
    biases = {n: t for n, t in whole.plan.tensors.items() if t.role is Role.BIAS and t.decided_by[-1] == NAME}
    assert biases
    settled = make_pass("correct-bias").run(replace(state, plan=whole.plan), where).state
    assert all(settled.plan.tensors[name] is entry for name, entry in biases.items())


def test_codes_of_a_solver_are_never_lost_to_a_worse_loss(fire):
    state, where = fire
    solved = with_solved_codes(state)
    found = make_pass(NAME).run(solved, where)
    assert found.report.changed
    names = {m.name: m.value for m in found.report.metrics}
    assert names["loss where it searched, after"] < names["loss where it searched, before"]
    assert names["loss where it confirmed, after"] < names["loss where it confirmed, before"]


def test_a_budget_that_is_spent_changes_nothing(fire):
    state, where = fire
    budget = Budget()
    budget.stop()
    found = make_pass(NAME).run(state, replace(where, budget=budget))
    assert found.state is state
    assert not found.report.changed
    assert "time" in found.report.notes[0]


def test_a_search_that_finds_no_time_returns_the_state(fire):
    state, where = fire
    part, _ = walked(state, where, stop=0)
    assert part.plan is state.plan
    assert part.units == ()


def test_at_eight_bits_it_does_nothing_unless_it_is_named():
    state, where = planned(
        conv_net(channels=16), passes=("fold-batch-norm", "place", "observe", "scale-weights", "calibrate")
    )
    where = replace(where, acceptance=where.calibration)
    quiet = make_pass(NAME).run(state, where)
    assert quiet.state is state
    assert quiet.report.metrics == ()
    named = replace(where, recipe=replace(where.recipe, passes=("place", f"{NAME}{{seconds=5}}")))
    asked = make_pass(NAME).run(state, named)
    assert next(m.value for m in asked.report.metrics if m.name == "candidates") > 0


def test_without_samples_it_says_so(fire):
    state, where = fire
    found = make_pass(NAME).run(state, replace(where, calibration=None))
    assert found.state is state
    assert "--data" in found.report.notes[0]


def test_seconds_are_not_negative():
    with pytest.raises(UsageError, match="negative"):
        make_pass(f"{NAME}{{seconds=-1}}")
