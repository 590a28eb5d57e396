"""Looking at inner values, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import DataError, RuntimeUnavailable
from qcompiler.model.fingerprint import structure_fingerprint
from qcompiler.runtime.capture import Executor, stream
from qcompiler.runtime.sessions import one_line, open_session
from tests.compiling import Fixed, outputs, samples, start
from tests.models import branch_net, conv_net, dense_net


def test_inner_values_inputs_and_outputs_are_returned():
    model = start(dense_net()).model
    data = samples(model, 1)
    before = structure_fingerprint(model)
    found = Executor(model, ["x", "r", "y", "r"]).run(data[0])
    assert set(found) == {"x", "r", "y"}
    assert found["x"] is data[0]["x"]
    assert found["r"].shape == (1, 32)
    assert found["r"].min() >= 0
    np.testing.assert_array_equal(found["y"], outputs(model, data[0])[0])
    assert structure_fingerprint(model) == before, "the model got no new outputs"


def test_nothing_but_inputs_needs_no_run():
    model = start(dense_net()).model
    assert set(Executor(model, ["x"]).run({"x": np.zeros((1, 16), np.float32)})) == {"x"}


def test_samples_stream_in_order():
    model = start(conv_net()).model
    data, seen = samples(model, 3), []
    values = list(stream(model, ["a1"], data, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for index, value in enumerate(values):
        np.testing.assert_array_equal(value["a1"], Executor(model, ["a1"]).run(data[index])["a1"])


def test_values_beside_a_subgraph():
    model = start(branch_net()).model
    feeds = {"x": np.ones((2, 8), np.float32), "flag": np.asarray(True)}
    assert Executor(model, ["y"]).run(feeds)["y"].shape == (2, 8)


def test_a_sample_that_does_not_fit_is_named():
    model = start(dense_net()).model
    data = Fixed([{"x": np.zeros((1, 16), np.float32)}, {"x": np.zeros((1, 3), np.float32)}])
    with pytest.raises(DataError, match=r"^sample 1 of made for a test does not run"):
        list(stream(model, ["y"], data))


def test_a_model_that_the_runtime_refuses_is_one_line():
    with pytest.raises(RuntimeUnavailable) as caught:
        open_session(b"nonsense")
    assert "\n" not in str(caught.value)


def test_long_messages_are_cut():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError("x" * 500), 20) == "x" * 17 + "..."
    assert one_line(ValueError()) == "ValueError"
