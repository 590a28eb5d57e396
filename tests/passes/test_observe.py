"""What is observed on calibration data."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from qcompiler.errors import DataError
from qcompiler.registry import make_pass
from tests.compiling import Fixed, context, outputs, run_passes, samples, start
from tests.models import FLOAT, build, conv_net

make = helper.make_node


def test_statistics_are_those_of_the_values():
    state = start(conv_net(batch_norm=False))
    data = samples(state.model, 3)
    found = run_passes(state, context(data=data), "place", "observe")
    images = np.stack([data[i]["image"] for i in range(3)])
    image = found.statistics["image"]
    assert (image.low, image.high, image.samples) == (images.min(), images.max(), 3)
    np.testing.assert_allclose(image.channel_mean, images.mean((0, 1, 3, 4), dtype=np.float64), rtol=1e-12)
    scores = [outputs(state.model, data[i])[0] for i in range(3)]
    assert "scores" not in found.statistics, "a float output needs no grid"
    assert len(scores) == 3
    planned = {t.name for t in found.plan.tensors.values() if t.role == "activation"}
    assert set(found.statistics) == planned


def test_inputs_of_weight_only_layers_are_observed_for_their_means():
    rng = np.random.default_rng(0)
    nodes = [make("Relu", ["x"], ["r"], name="relu"), make("Gemm", ["r", "w"], ["y"], name="fc", alpha=1.0, transA=1)]
    constants = {"w": rng.standard_normal((20, 20)).astype(np.float32)}
    state = start(build(nodes, [("x", FLOAT, [20, 2])], [("y", FLOAT, [2, 20])], constants))
    found = run_passes(state, context(data=samples(state.model)), "place", "observe")
    assert set(found.statistics) == {"r"}


def test_channels_of_one_dimensional_convolutions_are_axis_one():
    rng = np.random.default_rng(0)
    nodes = [make("Relu", ["x"], ["r"], name="relu"), make("Conv", ["r", "w"], ["y"], name="conv")]
    constants = {"w": rng.standard_normal((6, 4, 3)).astype(np.float32)}
    state = start(build(nodes, [("x", FLOAT, [1, 4, 9])], [("y", FLOAT, [1, 6, 7])], constants))
    found = run_passes(state, context(data=samples(state.model)), "place", "observe")
    assert found.statistics["r"].channel_mean.shape == (4,)


def test_no_samples_are_refused():
    state = start(conv_net())
    state = run_passes(state, context(), "place")
    with pytest.raises(DataError, match="needs calibration samples"):
        run_passes(state, context(), "observe")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    state = start(conv_net(batch_norm=False))
    data = Fixed([{"image": np.full((1, 3, 16, 16), bad, np.float32)}])
    with pytest.raises(DataError, match="not finite for sample 0"):
        make_pass("observe").run(run_passes(state, context(), "place"), context(data=data))


def test_constant_activations_are_noted():
    state = start(conv_net(batch_norm=False))
    data = Fixed([{"image": np.zeros((1, 3, 16, 16), np.float32)}])
    where = context(data=data)
    notes = make_pass("observe").run(run_passes(state, where, "place"), where).report.notes
    assert "'image' is constant over all samples" in notes
