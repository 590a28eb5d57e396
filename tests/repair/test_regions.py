"""What is taken back when a floor is missed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.gate.floors import LATENCY
from qcompiler.plan import Precision, Role
from qcompiler.records import Floor, LayerTime, RepairStep, Verdict
from qcompiler.repair.regions import (
    DAMAGING,
    EVERYWHERE,
    MAX_REPAIRS,
    NAME,
    SLOWER,
    Repair,
    compute_nodes,
    reverted,
)
from tests.compiling import lowered, planned, run_passes, runtime_ops
from tests.models import conv_net

LAYERS = ["conv1", "dw", "pw", "fc"]


@pytest.fixture(scope="module")
def decided():
    state, where = planned(conv_net(channels=16, batch_norm=False))
    return run_passes(state, where, "correct-bias"), where


def floor(name="SQNR of 'scores'", limit=20.0, reached: float | None = 10.0, unit="dB") -> Floor:
    direction = "at least" if unit == "dB" else "at most"
    return Floor(
        name=name, limit=limit, unit=unit, direction=direction, asked_by="default", reached=reached, held=False
    )


def verdict(*floors: Floor, failure: str = "") -> Verdict:
    return Verdict(loaded=True, data="held-out samples", samples=4, floors=floors, failure=failure)


def precisions(state) -> dict[str, Precision]:
    return {n: state.plan.nodes[n].precision for n in LAYERS}


def test_compute_nodes_in_order(decided):
    assert compute_nodes(decided[0]) == LAYERS


def test_nothing_reverted_is_the_same_state(decided):
    assert reverted(*decided, frozenset(), NAME) is decided[0]


def test_reverted_layers_keep_their_weights_in_integers(decided):
    state, where = decided
    found = reverted(state, where, frozenset({"dw", "pw"}), NAME)
    assert precisions(found) == {
        "conv1": Precision.INTEGER,
        "dw": Precision.WEIGHT_ONLY,
        "pw": Precision.WEIGHT_ONLY,
        "fc": Precision.INTEGER,
    }
    for name, tensor in found.plan.tensors.items():
        assert tensor.role is Role.BIAS or tensor is state.plan.tensors[name], "grids are kept"
    assert found.plan.choices["kept in float by repair"] == "dw, pw"
    ops = runtime_ops(lowered(found, where).model)
    assert ops.count("QLinearConv") == 1
    assert sum("Conv" in op and "QLinear" not in op for op in ops) == 2


def test_names_that_are_patterns_mean_themselves(decided):
    state, where = decided
    found = reverted(state, where, frozenset({"fc"}), NAME)
    assert precisions(found)["conv1"] is Precision.INTEGER
    assert precisions(found)["fc"] is not Precision.INTEGER


def test_a_failure_takes_everything_back(decided):
    state, where = decided
    repair = Repair(where, state)
    found = repair.propose(verdict(failure="it crashed"), ())
    assert not compute_nodes(found)
    assert repair.steps[0].action == EVERYWHERE
    assert repair.steps[0].outcome == "it crashed"
    assert repair.propose(verdict(failure="it crashed"), ()) is None, "there is nothing left"


def test_a_file_that_is_too_large_takes_everything_back(decided):
    state, where = decided
    repair = Repair(where, state)
    repair.propose(verdict(floor("file size", 10_000, 24_737, "bytes")), ())
    assert repair.steps[0].action == EVERYWHERE
    assert repair.steps[0].outcome == "file size is 24,737 bytes"


def times(**slower: bool) -> list[LayerTime]:
    return [LayerTime(name=n, op_type="Conv", before_us=10.0, after_us=12.0 if slower.get(n) else 8.0) for n in LAYERS]


def test_what_is_slower_in_integers_goes_back(decided):
    state, where = decided
    repair = Repair(where, state)
    late = verdict(floor(LATENCY, 1.02, 1.3, "of the original"))
    found = repair.propose(late, times(dw=True))
    assert compute_nodes(found) == ["conv1", "pw", "fc"]
    assert repair.steps[0].action == SLOWER
    assert "1.3" not in repair.steps[0].outcome, "a measured figure differs between runs"
    assert not compute_nodes(repair.propose(late, times(dw=True))), "the second time it is all"


def test_where_the_profile_blames_nobody_all_go_back(decided):
    state, where = decided
    late = verdict(floor(LATENCY, 1.02, 1.3, "of the original"))
    assert not compute_nodes(Repair(where, state).propose(late, times()))


def damage(culprit: str, gain: float = 12.0):
    """A trial that is better by ``gain`` dB once the culprit is in float."""

    def trial(state) -> float:
        return 10.0 + gain * (state.plan.nodes[culprit].precision is not Precision.INTEGER)

    return trial


@pytest.mark.parametrize("culprit", LAYERS)
def test_the_layer_that_does_the_damage_is_found(decided, culprit):
    state, where = decided
    repair = Repair(replace(where, trial=damage(culprit)), state)
    found = repair.propose(verdict(floor(limit=20.0, reached=10.0)), ())
    assert repair.reverted == {culprit}
    assert compute_nodes(found) == [n for n in LAYERS if n != culprit]
    assert repair.steps[0].action == DAMAGING
    assert repair.steps[0].layers == (culprit,)
    assert repair.steps[0].outcome == "SQNR of 'scores' is 10"


def test_repairs_add_up(decided):
    state, where = decided
    repair = Repair(replace(where, trial=damage("dw")), state)
    repair.propose(verdict(floor()), ())
    repair.context = replace(where, trial=damage("fc"))
    repair.propose(verdict(floor()), ())
    assert repair.reverted == {"dw", "fc"}


def test_where_no_single_layer_helps_several_go_back(decided):
    state, where = decided

    def trial(candidate) -> float:
        return 10.0 + 4.0 * sum(candidate.plan.nodes[n].precision is not Precision.INTEGER for n in ("dw", "fc"))

    repair = Repair(replace(where, trial=trial), state)
    repair.propose(verdict(floor(limit=17.0, reached=10.0)), ())
    assert {"dw", "fc"} <= repair.reverted


def test_without_trials_it_halves(decided):
    state, where = decided
    repair = Repair(where, state)
    assert compute_nodes(repair.propose(verdict(floor()), ())) == ["pw", "fc"]
    assert not compute_nodes(repair.propose(verdict(floor()), ()))


def test_repairs_are_bounded(decided):
    state, where = decided
    repair = Repair(where, state)
    repair.steps = [RepairStep(action=DAMAGING, layers=(), outcome="")] * MAX_REPAIRS
    assert repair.propose(verdict(floor()), ()) is None


def test_what_was_not_measured_cannot_be_repaired(decided):
    state, where = decided
    assert Repair(where, state).propose(verdict(floor(reached=None)), ()) is None


def test_reverting_in_one_step_or_two_is_the_same(decided):
    state, where = decided
    both = reverted(state, where, frozenset({"dw", "conv1"}), NAME)
    scales = {n: t.scale for n, t in both.plan.tensors.items() if t.scale is not None}
    assert all(np.array_equal(s, state.plan.tensors[n].scale) for n, s in scales.items())
