"""Scales and codes of planned weights."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from qcompiler.errors import UsageError
from qcompiler.plan import Role
from qcompiler.quant.grid import dequantize
from qcompiler.quant.weights import absmax_scale, as_rows
from qcompiler.registry import make_pass
from tests.compiling import lowered, outputs, planned, run_passes, samples
from tests.models import FLOAT, build, conv_net, dense_net, token_net
from tests.tolerances import half_step, sum_rounding

READY = ("place", "observe")


def weights(state):
    return {t.name: t for t in state.plan.tensors.values() if t.role is Role.WEIGHT}


@pytest.mark.parametrize(
    "proto", [conv_net(batch_norm=False), dense_net(), token_net(words=600)], ids=["conv", "dense", "token"]
)
@pytest.mark.parametrize("options", ["rounding=nearest", "rounding=balanced", "search=true"])
def test_every_planned_weight_gets_a_scale_per_channel(proto, options):
    state, where = planned(proto, passes=READY)
    found = weights(run_passes(state, where, f"scale-weights{{{options}}}"))
    assert found
    for entry in found.values():
        value = state.model.graph.initializers[entry.name]
        array = value.const_value.numpy()
        axis = entry.spec.axis
        assert entry.scale.shape == (() if axis is None else (array.shape[axis],))
        assert entry.scale.dtype == np.float32
        assert not entry.zero_point.any()
        if entry.codes is not None:
            assert entry.codes.shape == array.shape
            assert np.abs(entry.codes.astype(int)).max() <= 127
            moved = dequantize(entry.codes, entry.scale, entry.zero_point, axis) - array
            step = entry.scale.max()
            inside = "search" not in options
            assert not inside or np.abs(moved).max() <= 2 * half_step(float(step), float(np.abs(array).max()))


def test_without_search_the_largest_magnitude_is_covered():
    state, where = planned(conv_net(batch_norm=False), passes=READY)
    found = weights(run_passes(state, where, "scale-weights{rounding=nearest}"))
    for name in ("conv1.w", "dw.w", "pw.w"):
        array = state.model.graph.initializers[name].const_value.numpy()
        assert np.array_equal(found[name].scale, absmax_scale(as_rows(array, 0), 127))
        assert found[name].codes is None, "nearest rounding needs no record"
        assert found[name].error_db > 30


def test_balanced_codes_keep_the_sums_of_channels():
    state, where = planned(conv_net(batch_norm=False), passes=READY)
    entry = weights(run_passes(state, where, "scale-weights"))["pw.w"]
    array = state.model.graph.initializers["pw.w"].const_value.numpy()
    exact = as_rows(array, 0) / entry.scale[:, None]
    sums = (as_rows(entry.codes.astype(np.float32), 0) - exact).sum(1)
    assert np.all(np.abs(sums) <= 0.5 + sum_rounding(exact.shape[1], 127))


def test_unknown_roundings_are_refused():
    with pytest.raises(UsageError, match="stochastic"):
        make_pass("scale-weights{rounding=stochastic}")


def dead_channels(op: str, behind: str):
    """A layer whose channel 3 has tiny weights and an ordinary bias."""
    rng = np.random.default_rng(0)
    shape = (8, 8, 3, 3) if op == "Conv" else (8, 8)
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[3] *= 1e-9
    constants = {"w": weight, "b": np.full(8, 3.0, np.float32)}
    attributes = {"transB": 1} if op == "Gemm" else {}
    nodes = [helper.make_node(op, ["x", "w", "b"], ["h"], name="layer", **attributes)]
    nodes.append(helper.make_node(behind, ["h"], ["y"], name="behind"))
    data = [1, 8, 6, 6] if op == "Conv" else [2, 8]
    return build(nodes, [("x", FLOAT, data)], [("y", FLOAT, [1, 8, 4, 4] if op == "Conv" else [2, 8])], constants)


@pytest.mark.parametrize(("op", "behind"), [("Conv", "Relu"), ("Gemm", "Relu"), ("Gemm", "Softplus")])
def test_a_channel_of_tiny_weights_keeps_its_bias(op, behind):
    proto = dead_channels(op, behind)
    state, where = planned(proto)
    assert "would not fit" in weights(state)["w"].reason
    written = lowered(state, where).model
    feeds = samples(state.model, 1)[0]
    (expected,), (found,) = outputs(proto, feeds), outputs(written, feeds)
    entry = state.plan.activation("y")
    room = half_step(float(entry.scale), 16.0) if entry is not None else 1e-4
    channel = (slice(None), 3)
    assert np.abs(found[channel] - expected[channel]).max() <= room


def test_without_the_floor_the_bias_of_a_dead_channel_is_lost(monkeypatch):
    from qcompiler import layer_problems

    monkeypatch.setattr(layer_problems, "bias_floor", lambda bias, *_: np.zeros(bias.shape))
    proto = dead_channels("Conv", "Relu")
    state, where = planned(proto)
    feeds = samples(state.model, 1)[0]
    found = outputs(lowered(state, where).model, feeds)[0]
    assert np.abs(found[0, 3] - 3.0).max() > 1.0


def test_a_weight_shared_by_two_layers_fits_both_biases():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 8)).astype(np.float32) * 1e-9
    constants = {"w": weight, "b": np.zeros(8, np.float32), "c": np.full(8, 3.0, np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first", transB=1),
        helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="second", transB=1),
    ]
    outs = [("h", FLOAT, [2, 8]), ("y", FLOAT, [2, 8])]
    state, _ = planned(build(nodes, [("x", FLOAT, [2, 8])], outs, constants))
    entry = weights(state)["w"]
    step = float(state.plan.tensors["x"].scale)
    assert np.all(3.0 / (entry.scale * step) < 2**31)
