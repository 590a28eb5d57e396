"""Measuring models; no test looks at a time."""

import json
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model(tmp_path):
    """y = x @ w for rows of four."""
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_one_model(run, model):
    result = run("profile", model, "--seconds", 0.05)
    assert result.code == 0
    assert "model.onnx" in result.out
    assert "synthetic" in result.err


def test_two_models_on_data_as_json(run, model, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((2, 4), np.float32))
    words = ("--compare", model, "--data", tmp_path / "d.npz", "--seconds", 0.05, "--json")
    result = run("profile", tmp_path, *words)
    assert result.code == 0
    found = json.loads(result.out)
    assert found["model"] == found["other"] == str(model)
    assert found["comparison"]["ratio_min"] > 0
    assert found["profile"]["runs"] >= 5
    assert "d.npz" in found["source"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.onnx"], 3, "none.onnx"),
        (["."], 3, "holds no model.onnx"),
        (["{model}", "--threads", 0], 2, "threads is 0"),
        (["{model}", "--data", "none.npz"], 3, "no data at none.npz"),
        (["{model}", "--device", "board"], 2, "device 'board' is not known; give one of local, ssh://"),
        (["{model}", "--device", "ssh://nobody.invalid"], 6, "ssh://nobody.invalid cannot be reached"),
    ],
)
def test_refusals(run, model, words, code, message):
    result = run("profile", *(str(word).format(model=model) for word in words))
    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_layers_and_device_are_shown(run, model):
    result = run("profile", model, "--compare", model, "--seconds", 0.05, "--layers")
    assert result.code == 0
    assert re.search(r"^node +operator +us +us of OTHER +% of model$", result.out, re.MULTILINE)
    assert re.search(r"^MatMul +MatMul ", result.out, re.MULTILINE)
    assert re.search(r"^device +local *$", result.out, re.MULTILINE)
    assert re.search(r"^versions +python \d.*onnxruntime \d", result.out, re.MULTILINE)


def test_json_holds_layers_and_device(run, model):
    found = json.loads(run("profile", model, "--seconds", 0.05, "--layers", "--json").out)
    assert found["device"]["name"] == "local"
    assert found["device"]["peak_memory_bytes"] > 0
    assert "MatMul" in [row["name"] for row in found["layers"]]
