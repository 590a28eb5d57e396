"""Placement by instructions on an emulated board: what is done with counts that are made up here."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompiler.placement.instructions as counting
from qcompiler.counts import InstructionCounts
from qcompiler.errors import RuntimeUnavailable
from qcompiler.placement.cut import FLOAT, INTEGER
from qcompiler.placement.search import HOPELESS, place_by_measurement
from qcompiler.plan import Precision
from qcompiler.report.document import is_measured
from qcompiler.runtime.emulation.board import BOARDS
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.runtime.emulation.run import CountedModel, EmulatedFindings
from tests.compiling import lowered, planned, samples
from tests.models import conv_net

EMULATOR = Emulator(tree=Path("/t"), qemu=Path("/q"), libraries="", counter=Path("/c"), versions=())
AROUND = 5000
"""Instructions of a run outside of its nodes."""


@pytest.fixture
def decided():
    return planned(conv_net(batch_norm=False))


class FakeBoard:
    """Counts what it is told: nodes of both extremes, then whole splits in turn."""

    def __init__(self, state, *, costs=None, usual=(100_000, 50_000), splits=(), failure=("", "")):
        self.nodes = [(n.name, n.op_type) for n in state.model.graph]
        self.costs, self.usual = costs or {}, dict(zip((FLOAT, INTEGER), usual, strict=True))
        self.splits, self.failure, self.jobs = list(splits), failure, []

    def __call__(self, emulator, board, job):
        self.jobs.append(job)
        assert (job.samples / "00000.npz").is_file()
        assert all(path.is_file() for path in job.models.values())
        if self.failure[0] in job.models:
            return EmulatedFindings(failure=self.failure[1], culprit=self.failure[0])
        return EmulatedFindings(models={kind: self.counted(kind) for kind in job.models})

    def counted(self, kind):
        if kind == "split":
            return whole(self.splits.pop(0))
        nodes = [self.costs.get((name, kind), self.usual[kind]) for name, _ in self.nodes]
        counts = tuple(InstructionCounts(other=n) for n in nodes)
        return CountedModel(
            runs=whole(sum(nodes) + AROUND).runs, operators=tuple(self.nodes), elements=(1,) * len(nodes), nodes=counts
        )

    def total(self, kind):
        return self.counted(kind).runs[-1].total


def whole(total):
    return CountedModel(runs=(InstructionCounts(other=total + 100), InstructionCounts(other=total)))


def place(monkeypatch, decided, board):
    state, context = decided
    monkeypatch.setattr(counting, "run_emulated", board)
    meter = counting.InstructionMeter(EMULATOR, BOARDS["cortex-a72"])
    return place_by_measurement(state, context, samples(state.model), lambda s: lowered(s, context).model, meter)


def in_float(state):
    return {n.name for n in state.plan.nodes.values() if n.decided_by[-1] == "counted-placement"}


def test_a_split_of_fewer_instructions_is_kept_and_told_as_such(monkeypatch, decided):
    board = FakeBoard(decided[0], costs={("conv1", INTEGER): 400_000}, splits=[200_000, 10**9])
    state, report = place(monkeypatch, decided, board)
    assert state.plan.nodes["conv1"].precision is not Precision.INTEGER
    assert state.plan.nodes["conv1"].reason == "kept in float: fewer instructions there (emulated)"
    assert "conv1" in state.plan.choices["kept in float by counted-placement"]
    assert (report.name, report.changed) == ("counted-placement", True)
    values = {m.name: m.value for m in report.metrics}
    assert values["counted instructions (emulated) in integer"] == board.total(INTEGER)
    ratio = values["measured instructions (emulated) ratio of split 1"]
    assert ratio == pytest.approx(200_000 / board.total(INTEGER))
    assert values["predicted instructions (emulated) in integers"] >= board.total(INTEGER)


def test_nothing_is_told_as_a_time_and_all_of_it_is_apart_from_what_repeats(monkeypatch, decided):
    board = FakeBoard(decided[0], costs={("conv1", INTEGER): 400_000}, splits=[200_000] * 3)
    _, report = place(monkeypatch, decided, board)
    assert report.metrics
    for metric in report.metrics:
        assert "instructions" in metric.name
        assert metric.unit in ("", "instructions", "%", "of all integers, instructions (emulated)")
        assert is_measured(metric.name, metric.unit)


@pytest.mark.parametrize(("share", "kept"), [(0.99, True), (0.998, False), (1.0, False), (1.5, False)])
def test_a_split_must_win_by_more_than_counts_differ(share, kept, monkeypatch, decided):
    costs = {("conv1", INTEGER): 400_000}
    total = FakeBoard(decided[0], costs=costs).total(INTEGER)
    state, report = place(monkeypatch, decided, FakeBoard(decided[0], costs=costs, splits=[share * total] * 3))
    assert (state is not decided[0]) is report.changed is kept


def test_everything_in_float_takes_part_where_it_may_win(monkeypatch, decided):
    # The prediction prefers the integers, and the count of the whole model does not.
    board = FakeBoard(decided[0], usual=(100_000, 95_000), splits=[1000])
    state, _ = place(monkeypatch, decided, board)
    assert not {n.precision for n in state.plan.nodes.values()} & {Precision.INTEGER, Precision.MOVE}
    assert in_float(state)
    assert [sorted(job.models) for job in board.jobs] == [[FLOAT, INTEGER], ["split"]]
    assert [job.nodes for job in board.jobs] == [True, False]


def test_everything_in_float_is_not_run_where_it_cannot_win(monkeypatch, decided):
    board = FakeBoard(decided[0], usual=(100_000 * HOPELESS, 50_000))
    state, report = place(monkeypatch, decided, board)
    assert state is decided[0]
    assert len(board.jobs) == 1
    assert "no split is predicted to be cheaper, in instructions (emulated)" in report.notes[0]


def test_a_model_that_does_not_run_on_the_board_is_an_error(monkeypatch, decided):
    with pytest.raises(RuntimeUnavailable, match="the model does not run on the emulated cortex-a72: no kernel"):
        place(monkeypatch, decided, FakeBoard(decided[0], failure=(FLOAT, "no kernel")))


def test_integers_that_do_not_run_are_for_the_gate_to_tell(monkeypatch, decided):
    state, report = place(monkeypatch, decided, FakeBoard(decided[0], failure=(INTEGER, "no kernel")))
    assert state is decided[0]
    assert not report.changed


def test_a_split_that_does_not_run_is_dropped(monkeypatch, decided):
    board = FakeBoard(decided[0], costs={("conv1", INTEGER): 400_000}, failure=("split", "no kernel"))
    state, report = place(monkeypatch, decided, board)
    assert state is decided[0]
    assert not any("ratio" in m.name for m in report.metrics)


# -- costs ---------------------------------------------------------------------------------------------


def model_of(*rows, around=0):
    """Return a counted model from (name, operator, instructions, elements) of its nodes."""
    nodes = tuple(InstructionCounts(dot=1, other=count - 1) for _, _, count, _ in rows)
    return CountedModel(
        runs=(InstructionCounts(other=sum(row[2] for row in rows) + around),),
        operators=tuple((name, op) for name, op, _, _ in rows),
        elements=tuple(size for _, _, _, size in rows),
        nodes=nodes,
    )


def test_what_the_runtime_runs_for_a_node_is_added_up_without_conversions(decided):
    model = decided[0].model
    found = model_of(
        ("image_q", "QuantizeLinear", 900, 10),
        ("conv1", "QLinearConv", 500, 10),
        ("conv1_token_4", "Conv", 70, 10),
        ("conv1_q", "QuantizeLinear", 800, 10),
        ("Transpose_token_9", "Transpose", 60, 10),
    )
    assert counting.node_costs(found, model) == {"conv1": 570}


def test_a_boundary_is_what_large_conversions_take_per_element():
    large = model_of(
        ("a", "QuantizeLinear", 12_000, 4000),
        ("b", "DequantizeLinear", 4_000, 4000),
        ("c", "Transpose", 8_000, 4000),
        ("d", "Transpose", 99_000, 10),
        around=4000,
    )
    found = counting.conversion_cost([large, model_of(("e", "Conv", 5, 1), around=3000)])
    assert found.per_element == pytest.approx(16 / 8 + 8 / 4)
    assert found.least == pytest.approx(2 * 4000 / 4)


def test_without_large_conversions_the_usual_rates_hold():
    found = counting.conversion_cost([model_of(("d", "QuantizeLinear", 1, counting.LARGE - 1))])
    assert found.per_element == pytest.approx(sum(counting.USUAL.values()))
    assert counting.conversion_cost([]).least == 0.0
