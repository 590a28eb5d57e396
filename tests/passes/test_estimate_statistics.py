"""Statistics without data, from what BatchNorm knew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.registry import make_pass
from qcompiler.state import ChannelMoments, Fact
from tests.compiling import context, run_passes, start
from tests.models import FLOAT, build, conv_net

make = helper.make_node
MEAN, STD = np.array([0.5, -1.0, 2.0, 0.0]), np.array([1.0, 0.5, 0.1, 2.0])


def estimated(nodes, data=(1, 4, 6, 6), constants=None, known="x"):
    """Return the moments and statistics behind nodes on a value with known moments."""
    names = {o for n in nodes for o in n.output}
    proto = build(nodes, [("x", FLOAT, data)], [("y", FLOAT, None)], constants or {})
    proto = onnx.shape_inference.infer_shapes(proto)
    assert "y" in names
    state = start(proto)
    state = replace(state, moments={known: ChannelMoments(MEAN, STD)}, facts=frozenset({Fact.MOMENTS}))
    return make_pass("estimate-statistics").run(state, context())


def statistics(*nodes, **options):
    return estimated(nodes, **options).state.statistics.get("y")


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "node",
    [
        make("Relu", ["x"], ["y"]),
        make("Clip", ["x", "low", "high"], ["y"]),
        make("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]),
        make("GlobalAveragePool", ["x"], ["y"]),
        make("AveragePool", ["x"], ["y"], kernel_shape=[2, 2]),
        make("Identity", ["x"], ["z"]),
        make("Add", ["x", "x"], ["y"]),
    ],
    ids=lambda n: n.op_type,
)
def test_moments_go_through(node):
    nodes = [node] if node.output[0] == "y" else [node, make("Relu", ["z"], ["y"])]
    limits = {"low": np.float32(0), "high": np.float32(2)} if node.op_type == "Clip" else {}
    found = statistics(*nodes, constants=limits)
    assert found.channel_mean.shape == (4,)
    assert found.samples == 0
    if node.op_type in ("Relu", "Clip"):
        assert found.low >= 0.0
        assert found.high <= (2.0 if limits else np.inf)


@pytest.mark.parametrize(
    ("node", "data", "shape"),
    [
        (make("Conv", ["x", "w"], ["y"]), (1, 4, 6, 6), (3, 4, 1, 1)),
        (make("Conv", ["x", "w"], ["y"], group=2), (1, 4, 6, 6), (6, 2, 3, 3)),
        (make("Conv", ["x", "w"], ["y"]), (1, 4, 9), (3, 4, 2)),
        (make("Gemm", ["x", "w"], ["y"]), (2, 4), (4, 3)),
        (make("Gemm", ["x", "w"], ["y"], transB=1), (2, 4), (3, 4)),
        (make("MatMul", ["x", "w"], ["y"]), (2, 4), (4, 3)),
    ],
)
def test_linear_layers(node, data, shape):
    w = weight(*shape)
    found = statistics(node, data=data, constants={"w": w})
    rows = w.T if node.op_type != "Conv" and not node.attribute else w
    taps = rows.reshape(rows.shape[0], rows.shape[1], -1).sum(2).astype(np.float64)
    groups = 4 // rows.shape[1]
    means = np.repeat(MEAN.reshape(groups, -1), rows.shape[0] // groups, axis=0)
    np.testing.assert_allclose(found.channel_mean, (taps * means).sum(1), rtol=1e-6)


@pytest.mark.parametrize(
    ("node", "data", "constants"),
    [
        (make("MatMul", ["x", "w"], ["y"]), (2, 4), {"w": weight(4)}),
        (make("MatMul", ["x", "w"], ["y"]), (2, 4, 4), {"w": weight(4, 4)}),
        (make("MatMul", ["x", "w"], ["y"]), (2, 4), {"w": weight(4, 4, 4)}),
        (make("MatMul", ["w", "x"], ["y"]), (4, 4), {"w": weight(4, 4)}),
        (make("Gemm", ["x", "w"], ["y"], transA=1), (4, 4), {"w": weight(4, 4)}),
        (make("Gemm", ["x", "w"], ["y"], alpha=0.5), (4, 4), {"w": weight(4, 4)}),
        (make("Gemm", ["x", "w", "b"], ["y"]), (4, 4), {"w": weight(4, 4), "b": weight(4, 1)}),
        (make("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3]), (1, 4, 4, 4), {}),
        (make("Softmax", ["x"], ["y"]), (1, 4, 4, 4), {}),
    ],
    ids=["vector", "tokens", "batched", "left", "transA", "alpha", "row bias", "transpose", "softmax"],
)
def test_where_channels_are_lost_nothing_is_claimed(node, data, constants):
    assert statistics(node, data=data, constants=constants) is None


def test_padding_brings_channels_of_zeros():
    pads = np.array([0, 1, 0, 0, 0, 2, 0, 0])
    found = statistics(make("Pad", ["x", "p"], ["y"]), constants={"p": pads})
    assert found.channel_mean.tolist() == [0, *MEAN, 0, 0]


def test_concat_joins_channels_only_where_all_are_known():
    found = statistics(make("Concat", ["x", "x"], ["y"], axis=1))
    assert found.channel_mean.tolist() == [*MEAN, *MEAN]
    nodes = [make("Sin", ["x"], ["s"]), make("Concat", ["x", "s"], ["y"], axis=1)]
    assert statistics(*nodes) is None


def test_a_network_without_batch_norm_is_said_to_have_nothing():
    state = start(conv_net(batch_norm=False))
    where = context()
    state = run_passes(state, where, "fold-batch-norm")
    result = make_pass("estimate-statistics").run(state, where)
    assert not result.report.changed
    assert "no BatchNorm statistics" in result.report.notes[0]


def test_a_network_with_batch_norm_is_estimated_to_its_end():
    found = run_passes(start(conv_net()), context(), "fold-batch-norm", "estimate-statistics")
    assert {"n1", "a1", "d", "d6", "p", "s", "g", "f", "scores"} <= set(found.statistics)
    assert found.statistics["d6"].high <= 6.0
