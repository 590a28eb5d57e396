"""Placement by measurement: what is done with what was measured. Times are made up here, never taken."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from qcompiler.lowering import aligned_channels, with_aligned_channels
from qcompiler.placement import latency, search
from qcompiler.placement.cut import FLOAT, INTEGER, BoundaryCost, Splitter
from qcompiler.placement.latency import LatencyMeter
from qcompiler.placement.meter import Measured
from qcompiler.plan import Precision
from qcompiler.recipe import MatchRule
from qcompiler.repair.regions import NAME as REPAIR
from qcompiler.repair.regions import compute_nodes, reverted
from qcompiler.runtime.gate_process import GateFindings, ProfiledNode, RunTimes
from qcompiler.runtime.latency_db import LatencyDatabase
from tests.compiling import lowered, planned, samples
from tests.models import conv_net


@pytest.fixture
def decided(monkeypatch, tmp_path):
    """Give a planned state and its context; the database lies in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return planned(conv_net(batch_norm=False))


def slow_in_integers(state, slow):
    costs = {}
    for node in state.model.graph:
        for side in (INTEGER, FLOAT):
            us = 10.0 if side == FLOAT else 1000.0 if node.name == slow else 5.0
            costs[node.name, side] = us
    boundary = BoundaryCost(per_element=1e-6, least=0.0)
    return Measured(costs=costs, boundary=boundary)


def measured(state, context):
    data = samples(state.model)
    meter = LatencyMeter(context)
    return search.place_by_measurement(state, context, data, lambda s: lowered(s, context).model, meter)


def place(monkeypatch, decided, ratio):
    state, context = decided
    monkeypatch.setattr(LatencyMeter, "measure", lambda *_: slow_in_integers(state, "conv1"))
    monkeypatch.setattr(LatencyMeter, "ratio", lambda *_: (ratio, 100.0))
    return measured(state, context)


def test_a_split_that_is_faster_is_kept(monkeypatch, decided):
    state, report = place(monkeypatch, decided, ratio=0.5)
    node = state.plan.nodes["conv1"]
    assert node.precision is not Precision.INTEGER
    assert node.decided_by[-1] == LatencyMeter.name
    assert "measured to be faster" in node.reason
    assert "conv1" in state.plan.choices["kept in float by measured-placement"]
    assert report.changed


@pytest.mark.parametrize("ratio", [1.0 - LatencyMeter.min_win, 1.0, 2.0, float("inf")])
def test_a_split_that_is_not_faster_is_dropped(monkeypatch, decided, ratio):
    state, report = place(monkeypatch, decided, ratio)
    assert state is decided[0]
    assert not report.changed
    assert "no split was cheaper, in latency" in report.notes[0]


class TripleOnly(LatencyMeter):
    boundary_factors = (3.0,)


def test_a_candidate_is_not_hopeless_because_its_boundaries_were_made_dear(decided):
    state, context = decided
    last = compute_nodes(state)[-1]
    costs = {(n.name, side): {INTEGER: 10.0, FLOAT: 1e5}[side] for n in state.model.graph for side in (INTEGER, FLOAT)}
    found = Measured(costs=costs | {(last, INTEGER): 1e4, (last, FLOAT): 1e3}, boundary=BoundaryCost(per_element=10.0))
    (cut,) = search._candidates(state, found, TripleOnly(context))
    assert last in cut.to_float
    dear = Splitter(state, found.costs, found.boundary.times(3.0))
    assert dear.predict(frozenset(cut.to_float)) > search.HOPELESS * cut.all_integer


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        (MatchRule(pattern="^conv1$", scheme="static"), "integer"),
        (MatchRule(pattern="^conv1$", keep_float=True), "float"),
    ],
)
def test_a_recipe_pins_nodes(monkeypatch, tmp_path, rule, stays):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    state, context = planned(conv_net(batch_norm=False), rules=[rule])
    # What is pinned is slow where it is: the cut would move it.
    side, slow = (INTEGER, 1000.0) if stays == "integer" else (FLOAT, 1000.0)
    found = slow_in_integers(state, "none")
    found.costs["conv1", side] = slow
    monkeypatch.setattr(LatencyMeter, "measure", lambda *_: found)
    monkeypatch.setattr(LatencyMeter, "ratio", lambda *_: (0.5, 100.0))
    placed, _ = measured(state, context)
    assert (placed.plan.nodes["conv1"].precision is Precision.INTEGER) == (stays == "integer")
    assert LatencyMeter.name not in placed.plan.nodes["conv1"].decided_by


def test_repair_keeps_what_placement_decided(monkeypatch, decided):
    placed, _ = place(monkeypatch, decided, ratio=0.5)
    other = compute_nodes(placed)[-1]
    repaired = reverted(placed, decided[1], frozenset({other}), REPAIR)
    assert repaired.plan.nodes["conv1"].decided_by[-1] == LatencyMeter.name
    assert repaired.plan.nodes["conv1"].precision is not Precision.INTEGER
    assert repaired.plan.nodes[other].decided_by[-1] == REPAIR


def profile_of(state, node_us=6.0, run_us=20.0):
    nodes = [ProfiledNode(n.name, n.op_type, node_us, node_us, 10) for n in state.model.graph]
    run = RunTimes(run_us, run_us + 1.0, 2.0)
    kinds = ("original", "result")
    return GateFindings(nodes=dict.fromkeys(kinds, nodes), runs=dict.fromkeys(kinds, run))


def test_measured_nodes_are_found_again_in_the_database(decided, monkeypatch, tmp_path):
    state, context = decided
    monkeypatch.setattr(latency, "_run", lambda *_: profile_of(state))
    first = LatencyMeter(context).measure(state, tmp_path / "integer.onnx", tmp_path)
    monkeypatch.setattr(latency, "_run", lambda *_: pytest.fail("measured again"))
    again = LatencyMeter(context).measure(state, tmp_path / "integer.onnx", tmp_path)
    assert (first.reused, again.reused) == (0, len(list(state.model.graph)))
    assert (again.costs, again.boundary, again.fixed) == (first.costs, first.boundary, first.fixed)
    assert LatencyDatabase().set_aside == ""


def test_both_sides_add_up_to_a_run_without_the_profiler(decided, monkeypatch, tmp_path):
    state, context = decided
    monkeypatch.setattr(latency, "_run", lambda *_: profile_of(state, node_us=6.0, run_us=20.0))
    found = LatencyMeter(context).measure(state, tmp_path / "integer.onnx", tmp_path)
    for side in (INTEGER, FLOAT):
        total = sum(us for (_, where), us in found.costs.items() if where == side)
        assert total + found.fixed == pytest.approx(20.0)


def test_an_aligned_convolution_has_a_latency_of_its_own(decided):
    state, _ = decided
    node = next(n for n in state.model.graph if n.op_type == "Conv")
    aligned = replace(state, plan=with_aligned_channels(state.plan, node.name, 4))
    assert latency._signature(node, aligned) != latency._signature(node, state)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([0.9], 0.9), ([0.9, 0.95], 0.95), ([0.99, 0.90, 0.97, 0.98, 1.2], 0.99)],
)
def test_the_ratio_is_cautious(ratios, expected):
    assert latency.cautious_ratio(ratios) == expected


def timing(monkeypatch, *ratios):
    """Let the processes of the child find these ratios, one after the other, and return those that were started."""
    started = []

    def run(*_):
        started.append(1)
        # The second block of both was disturbed: only the fastest runs count.
        return GateFindings(blocks=([[1.0, 1.5], [ratios[len(started) - 1], 2.0]], [[9.0], [3.0]]))

    monkeypatch.setattr(latency, "_run", run)
    return started


@pytest.mark.parametrize(("loss_db", "kept"), [(0.0, True), (1.0, False), (-3.0, True)])
def test_a_faster_split_that_answers_worse_is_dropped(monkeypatch, decided, loss_db, kept):
    state, context = decided

    def level(tried):
        return 30.0 - loss_db * (tried.plan.nodes["conv1"].precision is not Precision.INTEGER)

    found, report = place(monkeypatch, (state, replace(context, trial=level)), ratio=0.5)
    assert (found is not state) == report.changed == kept


def files(tmp_path):
    (tmp_path / "integer.onnx").write_bytes(b"integer")
    (tmp_path / "split.onnx").write_bytes(b"split")
    return tmp_path / "integer.onnx", tmp_path / "split.onnx"


@pytest.mark.parametrize(
    ("ratios", "processes", "expected"),
    [
        ([0.90, 0.97], 2, 0.97),  # both clearly faster
        ([1.01, 1.02], 2, 1.02),  # both clearly not faster by enough
        ([1.10], 1, 1.10),  # not worth a second look
        ([0.97, 0.995, 0.97, 0.97, 0.97], 5, 0.97),  # too close: more are asked
        ([0.985, 0.995, 0.97, 0.999, 0.97], 5, 0.995),
    ],
)
def test_close_ratios_are_measured_more_often(monkeypatch, decided, tmp_path, ratios, processes, expected):
    started = timing(monkeypatch, *ratios)
    ratio, reached_us = LatencyMeter(decided[1]).ratio(*files(tmp_path), tmp_path)
    assert ratio == pytest.approx(expected)
    assert reached_us == pytest.approx(1e3 * min(ratios))
    assert len(started) == processes


def test_the_same_files_get_the_same_answer(monkeypatch, decided, tmp_path):
    timing(monkeypatch, 0.9, 0.9)
    first = LatencyMeter(decided[1]).ratio(*files(tmp_path), tmp_path)
    monkeypatch.setattr(latency, "_run", lambda *_: pytest.fail("timed again"))
    assert LatencyMeter(decided[1]).ratio(*files(tmp_path), tmp_path) == pytest.approx(first)
    integer, split = files(tmp_path)
    split.write_bytes(b"another split")
    with pytest.raises(pytest.fail.Exception, match="timed again"):
        LatencyMeter(decided[1]).ratio(integer, split, tmp_path)


@pytest.fixture
def stem(monkeypatch, tmp_path):
    """Give the planned state of a network whose first convolution reads 3 channels and writes 16."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return planned(conv_net(batch_norm=False, channels=16))


def aligning(monkeypatch, stem, ratio):
    state, context = stem
    monkeypatch.setattr(LatencyMeter, "measure", lambda *_: slow_in_integers(state, "none"))
    monkeypatch.setattr(LatencyMeter, "ratio", lambda *_: (ratio, 100.0))
    return measured(state, context)


def test_channels_are_aligned_where_that_is_faster(monkeypatch, stem):
    state, report = aligning(monkeypatch, stem, ratio=0.9)
    assert aligned_channels(state.plan, "conv1") == 4
    assert report.changed
    assert "align-channels" in stem[1].target.lower_passes()


@pytest.mark.parametrize("ratio", [1.0 - LatencyMeter.min_win, 1.1])
def test_channels_stay_as_they_are_where_that_is_as_fast(monkeypatch, stem, ratio):
    state, report = aligning(monkeypatch, stem, ratio)
    assert state is stem[0]
    assert not report.changed


def test_a_convolution_that_goes_to_float_loses_its_aligned_channels(monkeypatch, stem):
    state, context = stem
    monkeypatch.setattr(LatencyMeter, "measure", lambda *_: slow_in_integers(state, "conv1"))
    monkeypatch.setattr(LatencyMeter, "ratio", lambda *_: (0.5, 100.0))
    placed, _ = measured(state, context)
    assert placed.plan.nodes["conv1"].precision is not Precision.INTEGER
    assert aligned_channels(placed.plan, "conv1") == 0


def test_repair_keeps_aligned_channels(monkeypatch, stem):
    state, _ = aligning(monkeypatch, stem, ratio=0.9)
    repaired = reverted(state, stem[1], frozenset({compute_nodes(state)[-1]}), REPAIR)
    assert aligned_channels(repaired.plan, "conv1") == 4


def test_a_model_is_measured_for_real(decided):
    state, context = decided
    found, report = measured(state, context)
    values = {m.name: m.value for m in report.metrics}
    assert values["predicted latency in float"] > 0
    assert values["predicted latency of the split"] <= values["predicted latency in integers"]
    assert (found is state) == (not report.changed)


def test_the_runtime_reports_nothing_from_here():
    assert os.environ["ORT_DISABLE_TELEMETRY"]
