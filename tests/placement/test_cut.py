"""The split of a network between integers and float: against brute force, on made-up costs."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from qcompiler.model.load import load_model
from qcompiler.placement.cut import FLOAT, INTEGER, BoundaryCost, Splitter, node_signature
from qcompiler.placement.latency import BOUNDARY_FACTORS, MIN_WIN
from qcompiler.placement.node_times import LARGE, boundary_cost
from qcompiler.plan import CompressionPlan, NodePlan, Precision
from qcompiler.state import State
from tests import models

NODES = ("conv0", "conv1", "conv2", "add", "conv3")
BOUNDARY = BoundaryCost(per_element=1e-3, least=0.5)


def residual_state(folder: Path) -> State:
    """Four convolutions and an Add over a shortcut, all of which may run in integers."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((4, 4, 3, 3)).astype(np.float32) for i in range(4)}

    def conv(index: int, source: str) -> object:
        ends = [source, f"w{index}"], [f"c{index}"]
        return helper.make_node("Conv", *ends, name=f"conv{index}", pads=[1, 1, 1, 1])

    nodes = [conv(0, "x"), conv(1, "c0"), conv(2, "c1")]
    nodes += [helper.make_node("Add", ["c0", "c2"], ["a"], name="add"), conv(3, "a")]
    shape = [1, 4, 8, 8]
    model = models.build(nodes, [("x", models.FLOAT, shape)], [("c3", models.FLOAT, shape)], weights)
    loaded = load_model(models.save(model, folder)).model
    plans = {n: NodePlan(name=n, op_type="", precision=Precision.INTEGER) for n in NODES}
    return State(model=loaded, plan=CompressionPlan(nodes=plans))


def costs_of(rng: np.random.Generator) -> dict[tuple[str, str], float]:
    return {(n, side): float(rng.uniform(0, 4)) for n in NODES for side in (INTEGER, FLOAT)}


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_cheapest_of_all_splits(tmp_path: Path, seed: int) -> None:
    state = residual_state(tmp_path)
    splitter = Splitter(state, costs_of(np.random.default_rng(seed)), BOUNDARY)
    every = [c for size in range(len(NODES) + 1) for c in itertools.combinations(NODES, size)]
    cheapest = min(splitter.predict(frozenset(c)) for c in every)
    cut = splitter.cut()
    assert cut.predicted == pytest.approx(cheapest, abs=1e-4)
    assert cut.predicted == splitter.predict(frozenset(cut.to_float))


def test_a_value_pays_once_however_many_read_it(tmp_path: Path) -> None:
    state = residual_state(tmp_path)
    splitter = Splitter(state, {}, BOUNDARY)
    one = BOUNDARY.of(state.model.graph.inputs[0])
    assert splitter.predict(frozenset(NODES)) == 0.0
    assert splitter.predict(frozenset()) == pytest.approx(2 * one)
    # c0 is made in integers and read in float by conv1 and add.
    assert splitter.predict(frozenset(NODES[1:])) == pytest.approx(2 * one)


def test_ties_go_to_the_integers(tmp_path: Path) -> None:
    free = Splitter(residual_state(tmp_path), {}, BoundaryCost(per_element=0.0, least=0.0))
    assert free.cut().to_float == ()


def test_nodes_that_are_float_by_plan_stay_there(tmp_path: Path) -> None:
    state = residual_state(tmp_path)
    pinned = NodePlan(name="conv1", op_type="Conv", precision=Precision.FLOAT)
    state = State(model=state.model, plan=state.plan.with_nodes(pinned))
    slow = {(n, FLOAT): 100.0 for n in NODES}
    splitter = Splitter(state, slow, BOUNDARY)
    assert "conv1" not in splitter.movable()
    assert splitter.cut().to_float == ()


@pytest.mark.parametrize("seed", range(8))
def test_pinned_nodes_stay_in_integers_and_the_rest_is_still_the_cheapest(tmp_path: Path, seed: int) -> None:
    costs = {**costs_of(np.random.default_rng(seed)), ("conv1", INTEGER): 500.0}
    state = residual_state(tmp_path)
    assert "conv1" in Splitter(state, costs, BOUNDARY).cut().to_float
    splitter = Splitter(state, costs, BOUNDARY, frozenset({"conv1"}))
    free = [n for n in NODES if n != "conv1"]
    every = [c for size in range(len(free) + 1) for c in itertools.combinations(free, size)]
    cut = splitter.cut()
    assert splitter.movable() == free
    assert "conv1" not in cut.to_float
    assert cut.predicted == pytest.approx(min(splitter.predict(frozenset(c)) for c in every), abs=1e-4)


def test_the_boundary_is_one_conversion_and_one_layout_change() -> None:
    size = LARGE
    rows = [("QuantizeLinear", 2.0, size), ("Transpose", 3.0, size), ("Conv", 50.0, 10), ("ReorderInput", 1.0, size)]
    small = [("QuantizeLinear", 0.25, 10), ("DequantizeLinear", 0.75, 10), ("Transpose", 0.3, 10)]
    found = boundary_cost([*rows, *small])
    assert found.per_element == pytest.approx(2.0 / size + 4.0 / (2 * size))
    assert found.least == pytest.approx(0.5 + 0.3)


def test_small_conversions_say_nothing_about_the_rate() -> None:
    assert boundary_cost([("QuantizeLinear", 5.0, 10)]).per_element == boundary_cost([]).per_element


def test_signatures_tell_shapes_and_attributes_apart(tmp_path: Path) -> None:
    graph = residual_state(tmp_path).model.graph
    signatures = {n.name: node_signature(n) for n in graph}
    assert signatures["conv0"] == signatures["conv1"] == signatures["conv3"]
    assert signatures["add"] != signatures["conv0"]
    before = signatures["conv3"]
    del graph[4].attributes["pads"]
    assert node_signature(graph[4]) != before


def test_a_split_must_win_by_more_than_noise() -> None:
    assert MIN_WIN >= 0.005
    assert BOUNDARY_FACTORS[0] == 1.0
