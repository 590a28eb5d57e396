"""Bias corrections against what rounding really does to the mean of a channel."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from qcompiler.plan import Role
from qcompiler.registry import make_pass
from tests.compiling import Fixed, outputs, planned, run_passes
from tests.models import FLOAT, build
from tests.tolerances import sum_rounding

READY = ("place", "observe", "scale-weights{rounding=nearest}")
rng = np.random.default_rng(0)


def layer(op: str, data: list[int], weight: tuple[int, ...], **attributes):
    constants = {"w": rng.standard_normal(weight).astype(np.float32), "b": np.zeros(weight[0], np.float32)}
    if op == "Gemm" and not attributes.get("transB"):
        constants["b"] = np.zeros(weight[1], np.float32)
    node = helper.make_node(op, ["x", "w", "b"], ["y"], name="layer", **attributes)
    proto = build([node], [("x", FLOAT, data)], [("y", FLOAT, None)], constants)
    import onnx

    return onnx.shape_inference.infer_shapes(proto)


def correction(proto, data):
    state, where = planned(proto, data=data, passes=READY)
    found = run_passes(state, where, "correct-bias")
    entry = found.plan.tensors.get("layer:bias")
    return None if entry is None else entry.correction, found


LAYERS = {
    "conv": ("Conv", [1, 4, 5, 5], (6, 4, 3, 3), {}),
    "grouped": ("Conv", [1, 4, 5, 5], (6, 2, 3, 3), {"group": 2}),
    "depthwise": ("Conv", [1, 4, 5, 5], (4, 1, 3, 3), {"group": 4}),
    "1-D": ("Conv", [1, 4, 9], (6, 4, 3), {}),
    "1-D, as many positions as channels": ("Conv", [1, 4, 4], (6, 4, 3), {}),
    "3-D": ("Conv", [1, 4, 4, 4, 4], (6, 4, 3, 3, 3), {}),
    "gemm": ("Gemm", [3, 12], (12, 12), {}),
    "gemm transposed": ("Gemm", [3, 12], (12, 12), {"transB": 1}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_of_every_channel_comes_back(name):
    """On inputs that are constant per channel, the correction takes back the whole shift."""
    op, data, weight, attributes = LAYERS[name]
    proto = layer(op, data, weight, **attributes)
    channels = data[-1] if op == "Gemm" else data[1]
    means = rng.uniform(0.5, 2, channels).astype(np.float32)
    x = np.broadcast_to(means if op == "Gemm" else means.reshape(1, -1, *[1] * (len(data) - 2)), data)
    planned_correction, state = correction(proto, Fixed([{"x": np.ascontiguousarray(x)}]))
    entry = next(t for t in state.plan.tensors.values() if t.role is Role.WEIGHT)

    from qcompiler.lowering import weight_codes
    from qcompiler.quant.grid import dequantize

    value = state.model.graph.initializers["w"].const_value.numpy()
    rounded = dequantize(weight_codes(value, entry), entry.scale, entry.zero_point, entry.spec.axis)
    shifted = type(proto)()
    shifted.CopyFrom(proto)
    from onnx import numpy_helper

    shifted.graph.initializer[0].CopyFrom(numpy_helper.from_array(rounded, "w"))
    feeds = {"x": np.ascontiguousarray(x)}
    (before,), (after,) = outputs(proto, feeds), outputs(shifted, feeds)
    per_channel = (after.astype(np.float64) - before).reshape(
        -1, before.shape[-1] if op == "Gemm" else before[0, 0].size
    )
    shift = per_channel.mean(0) if op == "Gemm" else per_channel.mean(1)[: before.shape[1]]
    reach = float(np.abs(value).max()) * 2 * value[0].size
    np.testing.assert_allclose(planned_correction, -shift, atol=sum_rounding(value[0].size, reach))
    assert np.abs(shift).max() > 1e-4, "there is something to correct"


@pytest.mark.parametrize(
    ("data", "attributes"), [([12, 12], {"transA": 1}), ([3, 12], {"alpha": 0.5}), ([3, 12], {"beta": 2.0})]
)
def test_other_gemms_are_skipped(data, attributes):
    proto = layer("Gemm", data, (12, 12), **attributes)
    state, where = planned(proto, passes=READY)
    result = make_pass("correct-bias").run(state, where)
    assert not result.report.changed
    assert [s.tensor for s in result.report.skipped] == ["layer"]


def test_a_channel_count_that_varies_is_skipped():
    proto = layer("Conv", [1, 4, 5, 5], (6, 4, 3, 3))
    state, where = planned(proto, passes=READY)
    from dataclasses import replace

    blind = {k: replace(s, channel_mean=np.zeros(0)) for k, s in state.statistics.items()}
    result = make_pass("correct-bias").run(replace(state, statistics=blind), where)
    assert "mean of its input channels is not known" in result.report.skipped[0].reason
