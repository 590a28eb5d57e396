"""Node times without what the profiler adds, and whose time a change of layout is. Times are made up."""

from __future__ import annotations

import pytest
from onnx import helper

from qcompiler.placement.node_times import by_node, calibrated, completed
from qcompiler.runtime.gate_process import ProfiledNode, RunTimes
from qcompiler.runtime.latency_db import NodeLatency
from tests import models
from tests.compiling import start


def node(name: str, us: float, op_type: str = "Conv", elements: int = 100) -> ProfiledNode:
    return ProfiledNode(name, op_type, us, us, elements)


def times(nodes: list[ProfiledNode]) -> list[float]:
    return [n.typical_us for n in nodes]


def test_every_node_loses_the_same_time() -> None:
    # 60 us under the profiler, 51 - 3 us without: 4 us for each of three nodes.
    found = calibrated([node("a", 10), node("b", 20), node("c", 30)], RunTimes(51.0, 55.0, 3.0))
    assert times(found) == pytest.approx([6.0, 16.0, 26.0])


def test_no_node_takes_less_than_nothing_and_the_sum_holds() -> None:
    found = calibrated([node("a", 1), node("b", 20), node("c", 30)], RunTimes(42.0, 42.0, 0.0))
    assert times(found)[0] == 0.0
    assert sum(times(found)) == pytest.approx(42.0)


def test_a_profile_that_was_faster_is_scaled_up() -> None:
    found = calibrated([node("a", 10), node("b", 30)], RunTimes(80.0, 80.0, 0.0))
    assert times(found) == pytest.approx([20.0, 60.0])


@pytest.mark.parametrize("run", [RunTimes(0.0, 0.0, 0.0), RunTimes(2.0, 2.0, 5.0)])
def test_a_run_that_tells_nothing_changes_nothing(run: RunTimes) -> None:
    assert calibrated([node("a", 10)], run) == [node("a", 10)]
    assert calibrated([], run) == []


def two_layers():
    weights = {"w": models.np.zeros((4, 4, 1, 1), models.np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
        helper.make_node("MaxPool", ["c"], ["m"], name="pool", kernel_shape=[1, 1]),
    ]
    shape = [1, 4, 4, 4]
    return start(models.build(nodes, [("x", models.FLOAT, shape)], [("m", models.FLOAT, shape)], weights)).model


def test_a_layout_change_counts_as_part_of_the_next_node() -> None:
    profiled = [node("first", 5.0), node("ReorderOutput", 2.0, "ReorderOutput"), node("pool", 1.0, "MaxPool")]
    assert by_node(profiled, two_layers()) == {"first": NodeLatency(5.0, 5.0), "pool": NodeLatency(3.0, 3.0)}


def test_the_boundary_pays_for_grids_and_the_layout_beside_them() -> None:
    profiled = [
        node("x_q", 1.0, "QuantizeLinear"),
        node("Transpose", 2.0, "Transpose"),
        node("first", 5.0, "QLinearConv"),
        node("pool", 1.0, "NhwcMaxPool"),
        node("Transpose_token_3", 2.0, "Transpose"),
        node("m_dq", 1.0, "DequantizeLinear"),
    ]
    assert by_node(profiled, two_layers()) == {"first": NodeLatency(5.0, 5.0), "pool": NodeLatency(1.0, 1.0)}


def test_what_the_runtime_fused_away_costs_nothing() -> None:
    cost = NodeLatency(1.0, 2.0)
    assert completed({"a": cost}, ["a", "b"]) == {"a": cost, "b": NodeLatency(0.0, 0.0)}
