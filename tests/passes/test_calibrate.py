"""Ranges of activations: methods, shared grids, limits, and the search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from qcompiler.activation_grids import activation_limits, gridded
from qcompiler.errors import UsageError
from qcompiler.passes.calibrate import silu_values
from qcompiler.plan import Precision, QuantSpec, Role, TensorPlan
from qcompiler.quant.ranges import RANGE_METHODS
from qcompiler.registry import make_pass
from tests.compiling import Fixed, context, outputs, planned, run_passes, runtime_ops, samples, start
from tests.compiling import lowered as lower
from tests.models import FLOAT, build, conv_net
from tests.tolerances import FLOAT32_EPS, half_step

make = helper.make_node
READY = ("place", "observe", "scale-weights")


def activations(state) -> dict[str, TensorPlan]:
    return {t.name: t for t in state.plan.tensors.values() if t.role is Role.ACTIVATION}


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
def test_every_activation_gets_the_range_of_its_method(method):
    state, where = planned(conv_net(batch_norm=False), passes=READY)
    found = run_passes(state, where, f"calibrate{{method={method}}}")
    for entry in activations(found).values():
        assert entry.scale.dtype == np.float32
        assert entry.scale.shape == entry.zero_point.shape == ()
        assert entry.clip[0] <= 0 <= entry.clip[1]
        assert entry.decided_by[-1] == "calibrate"
    low, high = RANGE_METHODS[method](found.statistics["p"], 256, None)
    entry = found.plan.tensors["p"]
    assert entry.clip[1] - entry.clip[0] == pytest.approx(max(high, 0) - min(low, 0), rel=4 * FLOAT32_EPS)
    assert method in entry.reason


def test_what_only_moves_data_shares_the_grid_of_its_source():
    state, _ = planned(conv_net(batch_norm=False))
    pool, flat = state.plan.tensors["g"], state.plan.tensors["f"]
    assert (flat.scale, flat.zero_point) == (pool.scale, pool.zero_point)
    assert flat.reason == "shares the grid of 'g'"


def test_what_only_a_concat_reads_shares_the_grid_of_the_concat():
    rng = np.random.default_rng(0)
    constants = {n: rng.standard_normal((8, 8, 1, 1)).astype(np.float32) * s for n, s in (("v", 1), ("w", 9))}
    constants["u"] = rng.standard_normal((8, 16, 1, 1)).astype(np.float32)
    nodes = [
        make("Conv", ["x", "v"], ["a"], name="small"),
        make("Conv", ["x", "w"], ["b"], name="large"),
        make("Concat", ["a", "b"], ["k"], name="join", axis=1),
        make("Conv", ["k", "u"], ["y"], name="last"),
    ]
    proto = build(nodes, [("x", FLOAT, [1, 8, 4, 4])], [("y", FLOAT, [1, 8, 4, 4])], constants)
    state, _ = planned(proto)
    grids = {n: (float(state.plan.tensors[n].scale), int(state.plan.tensors[n].zero_point)) for n in "abk"}
    assert grids["a"] == grids["b"] == grids["k"]


def test_an_activation_that_was_never_observed_takes_its_nodes_back_to_float():
    state, where = planned(conv_net(batch_norm=False), passes=READY)
    statistics = {k: v for k, v in state.statistics.items() if k != "p"}
    blind = replace(state, statistics=statistics)
    result = make_pass("calibrate{method=minmax}").run(blind, where)
    plan = result.state.plan
    assert "p" not in plan.tensors
    assert plan.nodes["pw"].precision is Precision.FLOAT or plan.nodes["pw"].precision is Precision.WEIGHT_ONLY
    assert plan.nodes["add"].precision is Precision.FLOAT
    assert plan.nodes["dw"].precision is Precision.INTEGER
    assert [s.tensor for s in result.report.skipped] == ["p"]
    lower(run_passes(blind, where, "calibrate{method=minmax}"), where)  # and that can be written


def test_a_layer_goes_back_with_the_activation_that_is_fused_into_it():
    state, where = planned(conv_net(channels=16, batch_norm=False), passes=READY)
    blind = replace(state, statistics={k: v for k, v in state.statistics.items() if k != "d6"})
    found = run_passes(blind, where, "calibrate{method=minmax}")
    precisions = {n: p.precision for n, p in found.plan.nodes.items()}
    assert precisions["dw"] is Precision.WEIGHT_ONLY
    assert precisions["relu6"] is Precision.FLOAT
    assert precisions["pw"] is Precision.WEIGHT_ONLY
    assert "DequantizeLinear" not in [n.op_type for n in lower(found, where).model.graph if "dw" in (n.name or "")]


def test_unknown_methods_are_refused():
    with pytest.raises(UsageError, match="median"):
        make_pass("calibrate{method=median}")


# -- limits of fused activations --------------------------------------------------------------------------


@given(st.floats(-8, 0), st.floats(0.01, 8), st.floats(0.1, 1))
def test_grids_do_not_reach_beyond_the_limits(low, high, share):
    entry = TensorPlan(name="x", role=Role.ACTIVATION, spec=QuantSpec())
    found = gridded(entry, low * share, high, (low, high), "", "test")
    ends = [(code - int(found.zero_point)) * float(found.scale) for code in (0, 255)]
    assert ends[0] >= low
    assert ends[1] <= high
    step = (high - low * share) / 255
    assert ends[0] <= low * share * (1 - 1 / 128) + 1.5 * step, "and are not much narrower"
    assert ends[1] >= high * (1 - 1 / 128) - 1.5 * step


@pytest.mark.parametrize("limits", [(1.0, 6.0), (-6.0, -1.0), (0.0, 0.0), (-np.inf, np.inf)])
def test_limits_that_no_grid_can_keep_are_not_waited_for(limits):
    entry = TensorPlan(name="x", role=Role.ACTIVATION, spec=QuantSpec())
    found = gridded(entry, max(limits[0], -9.0), min(limits[1], 9.0), limits, "", "test")
    assert found.scale > 0


def test_limits_of_a_graph():
    constants = {"low": np.float32(-1), "high": np.float32(6)}
    nodes = [
        make("Relu", ["x"], ["r"]),
        make("Clip", ["r", "low", "high"], ["c"]),
        make("Clip", ["c", "", "high"], ["d"]),
        make("Clip", ["d"], ["e"]),
        make("Add", ["e", "e"], ["y"]),
    ]
    model = start(build(nodes, [("x", FLOAT, [2])], [("y", FLOAT, [2])], constants)).model
    found = activation_limits(model)
    assert found == {"r": (0, np.inf), "c": (-1, 6), "d": (-np.inf, 6), "e": (-np.inf, np.inf)}


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, 6), (-3, 3), (None, 2), (-0.37, None)])
def test_the_runtime_fuses_a_clip_whatever_its_limits(low, high):
    names = [n if v is not None else "" for n, v in (("low", low), ("high", high))]
    rng = np.random.default_rng(0)
    constants = {n: np.float32(v) for n, v in zip(names, (low, high), strict=True) if n}
    constants["w"] = rng.standard_normal((8, 8, 3, 3)).astype(np.float32)
    nodes = [make("Conv", ["x", "w"], ["c"], name="conv"), make("Clip", ["c", *names], ["y"], name="clip")]
    proto = build(nodes, [("x", FLOAT, [1, 8, 6, 6])], [("y", FLOAT, [1, 8, 4, 4])], constants)
    state, where = planned(proto)
    ops = runtime_ops(lower(state, where).model)
    assert "QLinearConv" in ops
    assert "Clip" not in ops


# -- search --------------------------------------------------------------------------------------------------


def test_values_that_only_silu_reads():
    nodes = [
        make("Relu", ["x"], ["a"]),
        make("Sigmoid", ["a"], ["s"]),
        make("Mul", ["a", "s"], ["m"]),
        make("Sigmoid", ["m"], ["t"]),
        make("Mul", ["x", "t"], ["y"]),
    ]
    model = start(build(nodes, [("x", FLOAT, [2])], [("y", FLOAT, [2])])).model
    assert silu_values(model) == {"a"}


def test_best_without_trial_is_mse_with_data_and_minmax_without():
    state, where = planned(conv_net(batch_norm=False), passes=READY)
    found = run_passes(state, where, "calibrate")
    assert "mse" in found.plan.tensors["p"].reason
    bare = start(conv_net())
    found = run_passes(bare, context(), "fold-batch-norm", "estimate-statistics", "place", "scale-weights", "calibrate")
    assert "minmax" in found.plan.tensors["a1"].reason


def test_the_search_takes_what_the_trial_likes_best():
    state, where = planned(conv_net(batch_norm=False), passes=READY)

    def likes(candidate) -> float:
        """Percentile on 'p', min-max elsewhere, is worth most."""
        chosen = activations(candidate)
        good = sum("minmax" in t.reason for t in chosen.values()) + 3 * ("percentile" in chosen["p"].reason)
        return float(good)

    result = make_pass("calibrate").run(state, replace(where, trial=likes))
    methods = {n: t.reason for n, t in activations(result.state).items()}
    assert "percentile" in methods["p"]
    assert "minmax" in methods["image"]
    metrics = {m.name: m.value for m in result.report.metrics}
    assert metrics["trial of the mixture"] == likes(result.state)
    assert metrics["trial minmax"] == likes(run_passes(state, where, "calibrate{method=minmax}"))


def test_the_search_is_the_same_every_time():
    state, where = planned(conv_net(batch_norm=False), passes=READY)
    noisy = [replace(where, trial=lambda s: float(sum(t.scale for t in activations(s).values()))) for _ in range(2)]
    first, second = (make_pass("calibrate").run(state, c).state.plan for c in noisy)
    assert [t.reason for t in first.tensors.values()] == [t.reason for t in second.tensors.values()]


def test_constant_activations_are_named_and_survive():
    nodes = [make("Relu", ["x"], ["r"], name="relu"), make("Conv", ["r", "w", "b"], ["y"], name="conv")]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
        "b": np.arange(-4, 4, dtype=np.float32),
    }
    proto = build(nodes, [("x", FLOAT, [1, 8, 6, 6])], [("y", FLOAT, [1, 8, 4, 4])], constants)
    dead = Fixed([{"x": -np.ones((1, 8, 6, 6), np.float32)}])
    state, where = planned(proto, data=dead)
    assert state.plan.tensors["r"].scale == 1.0
    (found,) = outputs(lower(state, where).model, dead[0])
    # Half a step of rounding, and half a step that the rounded zero point cuts off at one end.
    assert np.abs(found[0, :, 0, 0] - constants["b"]).max() <= 2 * half_step(float(state.plan.tensors["y"].scale), 4)


def test_samples_of_zero_size_are_no_samples():
    proto = conv_net(batch_norm=False)
    state = start(proto)
    empty = {"image": np.zeros((0, 3, 16, 16), np.float32)}
    full = samples(state.model, 1)[0]
    found = run_passes(state, context(data=Fixed([empty, full])), "place", "observe")
    assert found.statistics["p"].samples == 1
