"""Placement by measurement: what is done with what was measured. Times are made up here, never taken."""

from __future__ import annotations

import os

import pytest

import qcompiler.measured_placement as placement
from qcompiler.min_cut import FLOAT, INTEGER, BoundaryCost
from qcompiler.plan import Precision
from qcompiler.repair import NAME as REPAIR
from qcompiler.repair import compute_nodes, reverted
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
    return placement.Measured(costs=costs, boundary=boundary)


def measured(state, context):
    data = samples(state.model)
    meter = placement.LatencyMeter(context)
    return placement.place_by_measurement(state, context, data, lambda s: lowered(s, context).model, meter)


def place(monkeypatch, decided, ratio):
    state, context = decided
    monkeypatch.setattr(placement, "_measure", lambda *_: slow_in_integers(state, "conv1"))
    monkeypatch.setattr(placement, "_ratio", lambda *_: (ratio, 100.0))
    return measured(state, context)


def test_a_split_that_is_faster_is_kept(monkeypatch, decided):
    state, report = place(monkeypatch, decided, ratio=0.5)
    node = state.plan.nodes["conv1"]
    assert node.precision is not Precision.INTEGER
    assert node.decided_by[-1] == placement.NAME
    assert "measured to be faster" in node.reason
    assert "conv1" in state.plan.choices["kept in float by measured-placement"]
    assert report.changed


@pytest.mark.parametrize("ratio", [1.0 - placement.MIN_WIN, 1.0, 2.0, float("inf")])
def test_a_split_that_is_not_faster_is_dropped(monkeypatch, decided, ratio):
    state, report = place(monkeypatch, decided, ratio)
    assert state is decided[0]
    assert not report.changed
    assert "no split was cheaper, in latency" in report.notes[0]


class TripleOnly(placement.LatencyMeter):
    boundary_factors = (3.0,)


def test_a_candidate_is_not_hopeless_because_its_boundaries_were_made_dear(decided):
    state, context = decided
    last = compute_nodes(state)[-1]
    costs = {(n.name, side): {INTEGER: 10.0, FLOAT: 1e5}[side] for n in state.model.graph for side in (INTEGER, FLOAT)}
    found = placement.Measured(
        costs=costs | {(last, INTEGER): 1e4, (last, FLOAT): 1e3}, boundary=BoundaryCost(per_element=10.0)
    )
    (cut,) = placement._candidates(state, found, TripleOnly(context))
    assert last in cut.to_float
    assert cut.predicted > placement.HOPELESS * (10_000 + 10 * 3 * 16 * 16)


def test_repair_keeps_what_placement_decided(monkeypatch, decided):
    placed, _ = place(monkeypatch, decided, ratio=0.5)
    other = compute_nodes(placed)[-1]
    repaired = reverted(placed, decided[1], frozenset({other}), REPAIR)
    assert repaired.plan.nodes["conv1"].decided_by[-1] == placement.NAME
    assert repaired.plan.nodes["conv1"].precision is not Precision.INTEGER
    assert repaired.plan.nodes[other].decided_by[-1] == REPAIR


def test_measured_nodes_are_found_again_in_the_database(decided, monkeypatch, tmp_path):
    state, context = decided
    profiled = [placement.ProfiledNode(n.name, n.op_type, 5.0, 6.0, 10) for n in state.model.graph]
    monkeypatch.setattr(placement, "_profile", lambda *_: {"original": profiled, "result": profiled})
    first = placement._measure(state, context, tmp_path, tmp_path / "integer.onnx")
    monkeypatch.setattr(placement, "_profile", lambda *_: pytest.fail("measured again"))
    again = placement._measure(state, context, tmp_path, tmp_path / "integer.onnx")
    assert (first.reused, again.reused) == (0, len(list(state.model.graph)))
    assert again.costs == first.costs
    assert LatencyDatabase().set_aside == ""


def test_a_model_is_measured_for_real(decided):
    state, context = decided
    found, report = measured(state, context)
    values = {m.name: m.value for m in report.metrics}
    assert values["predicted latency in float"] > 0
    assert values["predicted latency of the split"] <= values["predicted latency in integers"]
    assert (found is state) == (not report.changed)


def test_the_runtime_reports_nothing_from_here():
    assert os.environ["ORT_DISABLE_TELEMETRY"]
