"""The script of the child, in this process: comparisons, and latency on a clock of our own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qcompiler.runtime import _gate_child
from qcompiler.runtime._gate_child import BLOCK_SECONDS, MIN_BLOCKS, WARMUP_RUNS, Comparison, latency, timed


class Clock:
    """Time that passes only when a session runs."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Session:
    """Takes a given number of seconds for a run, and notes when it ran."""

    def __init__(self, clock: Clock, seconds: float, log: list[str], name: str) -> None:
        self.clock, self.seconds, self.log, self.name = clock, seconds, log, name

    def run(self, names: object, feeds: object) -> list[object]:
        self.clock.now += self.seconds
        self.log.append(self.name)
        return []


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(_gate_child, "time", made)
    monkeypatch.setattr(_gate_child, "read_sample", lambda folder, index: {})
    return made


def measure(clock, capsys, seconds=(1 / 256, 1 / 512), budget=0.0):
    log: list[str] = []
    sessions = [Session(clock, s, log, n) for s, n in zip(seconds, "ab", strict=True)]
    latency(sessions, {"samples": "", "latency_seconds": budget})
    return json.loads(capsys.readouterr().out), log


def test_runs_are_timed_in_milliseconds(clock):
    assert timed(Session(clock, 0.25, [], "a"), {}, 3) == pytest.approx([250.0] * 3)


def test_sessions_alternate_in_blocks(clock, capsys):
    found, log = measure(clock, capsys)
    assert found["stage"] == "latency"
    assert len(found["blocks"]) == MIN_BLOCKS
    runs = int(BLOCK_SECONDS * 256)
    for first, second in found["blocks"]:
        assert first == [1e3 / 256] * runs
        assert second == [1e3 / 512] * runs
    warm = "a" * WARMUP_RUNS + "b" * WARMUP_RUNS
    blocks = [("ab", "ba")[i % 2] for i in range(MIN_BLOCKS)]
    assert "".join(log) == warm + "".join(c * runs for pair in blocks for c in pair)


def test_a_slow_model_is_run_once_a_block(clock, capsys):
    found, _ = measure(clock, capsys, seconds=(3.0, 5.0))
    assert [len(b[0]) for b in found["blocks"]] == [1] * MIN_BLOCKS


def test_blocks_go_on_for_the_time_that_is_given(clock, capsys):
    found, _ = measure(clock, capsys, budget=1.0)
    spent = sum(sum(map(sum, block)) for block in found["blocks"]) / 1e3
    assert 1.0 <= spent < 1.0 + 3 * 2 * BLOCK_SECONDS


# -- comparisons -----------------------------------------------------------------------------------------------


def compared(*pairs):
    comparison = Comparison("y")
    for expected, found in pairs:
        comparison.add(expected, found)
    return comparison.result()


def test_sums_add_up_over_samples():
    found = compared((np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)), (np.ones(2), np.ones(2)))
    assert (found["signal"], found["error"], found["own"], found["dot"]) == (4.0, 2.0, 2.0, 2.0)
    assert found["max_abs"] == 1.0
    assert found["samples"] == 2
    assert not found["same"]


def test_answers_are_taken_from_rows_of_scores():
    a, b = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32), np.array([[0.2, 0.8], [0.3, 0.7]], np.float32)
    assert compared((a, b))["answers"] == ([1, 0], [1, 1])
    assert compared((a[:, :1], b[:, :1]))["answers"] == ([], [])


@pytest.mark.parametrize(
    ("expected", "found", "problem"),
    [
        (np.ones((1, 2)), np.ones((2, 1)), "shape (2, 1) instead of (1, 2)"),
        (np.ones(2), np.array([1.0, np.nan]), "NaN or infinity"),
        (np.ones(2), np.array([1.0, np.inf]), "NaN or infinity"),
    ],
)
def test_what_cannot_be_compared_is_a_problem(expected, found, problem):
    assert problem in compared((expected, found))["problem"]


def test_where_the_original_is_not_finite_nothing_is_compared():
    found = compared((np.array([1.0, np.nan]), np.array([1.0, 5.0])))
    assert found["problem"] == ""
    assert found["error"] == 0.0


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        ([np.ones(2), np.zeros(1)], [np.ones(2), np.zeros(1)], True),
        ([np.ones(2)], [np.zeros(2)], False),
        ({"a": 1.0}, {"a": 1.0}, True),
    ],
)
def test_other_types_are_equal_or_not(expected, found, same):
    assert compared((expected, found))["same"] is same


def test_empty_outputs_are_equal():
    found = compared((np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)))
    assert found["same"]
    assert found["max_abs"] == 0.0
