"""What the report says about layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.layers import HISTOGRAM_BINS, clipped_share, histograms, layer_reports
from qcompiler.quant.histogram import StreamingStatistics
from qcompiler.records import IntegerShare
from tests.compiling import planned
from tests.models import branch_net, conv_net, dense_net


@pytest.fixture(scope="module")
def state():
    return planned(conv_net(channels=16, batch_norm=False))[0]


def reports(state, levels=None, share=None):
    return {r.name: r for r in layer_reports(state, levels or {}, share)}


def observed(*samples: np.ndarray):
    statistics = StreamingStatistics(1)
    for sample in samples:
        statistics.add(np.asarray(sample, np.float32))
    return statistics.result()


def test_every_node_is_listed_in_order(state):
    names = [r.name for r in layer_reports(state, {}, None)]
    assert names == ["conv1", "act1", "dw", "relu6", "pw", "add", "pool", "flatten", "fc"]


def test_nodes_of_branches_are_listed(state):
    found, _ = planned(branch_net())
    assert [r.op_type for r in layer_reports(found, {}, None)].count("MatMul") == 2


def test_a_layer_says_what_was_decided_and_by_whom(state):
    found = reports(
        state, {"a1": 35.0}, IntegerShare(compute_nodes=4, integer_nodes=3, macs=1, integer_macs=1, float_nodes=("pw",))
    )
    conv = found["conv1"]
    assert conv.precision == "integer"
    assert conv.runs_integer
    assert conv.reason == "integer kernel of the target"
    assert conv.decided_by == ("place", "calibrate", "scale-weights")
    assert conv.sqnr_db == 35.0, "of the value behind the fused activation"
    assert conv.clip == state.plan.tensors["a1"].clip
    assert conv.observed == (state.statistics["a1"].low, state.statistics["a1"].high)
    assert conv.weight_db == state.plan.tensors["conv1.w"].error_db
    assert conv.weight_bits == 8
    assert conv.weight_reason == state.plan.tensors["conv1.w"].reason
    assert found["pool"].weight_bits is None
    assert found["pw"].runs_integer is False
    assert found["pool"].runs_integer is None
    assert reports(state)["conv1"].runs_integer is None


def test_bytes_before_and_after(state):
    found = reports(state)
    weights = 16 * 3 * 9
    assert found["conv1"].bytes_before == 4 * weights + 4 * 16
    assert found["conv1"].bytes_after == weights + 4 * 16 + 4 * 16, "codes, scales and the float bias"
    assert found["act1"].bytes_before == 0


def test_a_shared_constant_counts_once():
    from onnx import helper

    from tests.models import FLOAT, build

    nodes = [helper.make_node("Gemm", [x, "w"], [y], name=y, transB=1) for x, y in (("x", "h"), ("h", "y"))]
    proto = build(nodes, [("x", FLOAT, [1, 20])], [("y", FLOAT, [1, 20])], {"w": np.ones((20, 20), np.float32)})
    found = reports(planned(proto)[0])
    assert found["h"].bytes_before == 1600
    assert found["y"].bytes_before == 0


# -- causes ---------------------------------------------------------------------------------------------------


def cause(state, levels, **statistics) -> str:
    state = replace(state, statistics={**state.statistics, **statistics})
    return reports(state, levels)["pw"].cause


RNG = np.random.default_rng(0)
PLAIN = [RNG.uniform(-1, 1, (1, 16, 8, 8)) for _ in range(20)]


def widened(state, statistics):
    """Return the state with a grid on 'p' that covers what was observed."""
    entry = replace(state.plan.tensors["p"], clip=(statistics.low, statistics.high))
    return replace(state, plan=state.plan.with_tensors(entry))


def test_without_a_level_there_is_no_cause(state):
    assert cause(state, {}) == ""


def test_errors_of_the_layers_before_are_inherited(state):
    assert "inherited" in cause(state, {"p": 20.0, "d6": 20.5})
    assert "inherited" not in cause(state, {"p": 20.0, "d6": 40.0})


def test_a_constant(state):
    flat = observed(np.ones((1, 16, 2, 2)))
    assert cause(widened(state, flat), {"p": 20.0}, p=flat) == "constant activation"


def test_saturation(state):
    wide = observed(*PLAIN)
    narrow = replace(state.plan.tensors["p"], clip=(-0.5, 0.5))
    assert "saturation" in cause(replace(state, plan=state.plan.with_tensors(narrow)), {"p": 20.0}, p=wide)


def test_outliers(state):
    far = [*PLAIN, PLAIN[0].copy()]
    far[-1][0, 0, 0, 0] = 50.0
    found = observed(*far)
    assert "range outlier" in cause(widened(state, found), {"p": 20.0}, p=found)


def test_uneven_channels(state):
    uneven = [p * np.linspace(0.001, 1, 16).reshape(1, 16, 1, 1) for p in PLAIN]
    uneven = [np.where(np.arange(16).reshape(1, 16, 1, 1) < 4, u * 0.01, u) for u in uneven]
    found = observed(*uneven)
    assert "uneven channels" in cause(widened(state, found), {"p": 20.0}, p=found)


def test_coarse_weights(state):
    found = observed(*PLAIN)
    coarse = replace(state.plan.tensors["pw.w"], error_db=20.0)
    state = replace(state, plan=state.plan.with_tensors(coarse))
    assert cause(widened(state, found), {"p": 20.0}, p=found) == "weight rounding"


def test_few_samples_and_none(state):
    few = observed(*PLAIN[:3])
    assert cause(widened(state, few), {"p": 20.0}, p=few) == "few samples"
    none = replace(few, samples=0)
    assert "without data" in cause(widened(state, few), {"p": 20.0}, p=none)


def test_what_is_left_is_rounding(state):
    found = observed(*PLAIN)
    assert cause(widened(state, found), {"p": 20.0}, p=found) == "activation rounding"


# -- histograms -------------------------------------------------------------------------------------------------


def test_histograms_keep_every_count(state):
    found = {h.name: h for h in histograms(state)}
    assert set(found) == {t.name for t in state.plan.tensors.values() if t.role == "activation"}
    image = found["image"]
    assert len(image.counts) == HISTOGRAM_BINS
    assert sum(image.counts) == state.statistics["image"].counts.sum()
    assert (image.low, image.high) == state.statistics["image"].grid
    assert image.clip == state.plan.tensors["image"].clip


def test_clipped_share():
    values = np.linspace(-1, 1, 2001)
    found = observed(values.reshape(1, -1, 1))
    assert clipped_share(found, (-2.0, 2.0)) == 0.0
    assert clipped_share(found, (-1.0, 0.5)) == pytest.approx(0.25, abs=2 / 2048 + 2 / 2001)


def test_a_dense_network_too():
    assert {"fc1", "fc2"} <= set(reports(planned(dense_net())[0]))
