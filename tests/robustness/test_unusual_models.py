"""Models that are out of the ordinary and fine: each ends in a verified model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tests.robustness.conftest import Command, Ended

FLOAT = models.FLOAT


def weight(*shape: int, seed: int = 0) -> models.Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def verified(ended: Ended) -> dict[str, Any]:
    """Return the report of a verified result."""
    assert ended.code == 0, ended.err
    report: dict[str, Any] = json.loads((ended.folder / "out" / "report.json").read_text())
    assert report["verdict"]["loaded"]
    assert not report["verdict"]["failure"]
    return report


def no_inputs() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["a", "w"], ["y"], name="fc")]
    return models.build(nodes, [], [("y", FLOAT, [4, 64])], {"a": weight(4, 64, seed=1), "w": weight(64, 64)})


def no_float_output() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"], name="fc"),
        helper.make_node("ArgMax", ["s"], ["y"], name="answer", axis=1, keepdims=0),
    ]
    inputs = [("x", FLOAT, ["N", 64])]
    return models.build(nodes, inputs, [("y", TensorProto.INT64, ["N"])], {"w": weight(64, 64)})


def words() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
        helper.make_node("StringConcat", ["a", "b"], ["c"], name="join"),
    ]
    text = TensorProto.STRING
    inputs = [("x", FLOAT, ["N", 64]), ("a", text, ["N"]), ("b", text, ["N"])]
    outputs = [("y", FLOAT, ["N", 64]), ("c", text, ["N"])]
    return models.build(nodes, inputs, outputs, {"w": weight(64, 64)}, opset=20)


def sequence_output() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("SequenceConstruct", ["m", "x"], ["y"], name="both"),
    ]
    model = models.build(nodes, [("x", FLOAT, [2, 64])], [], {"w": weight(64, 64)})
    model.graph.output.append(helper.make_tensor_sequence_value_info("y", FLOAT, [2, 64]))
    return model


def map_output() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("ZipMap", ["m"], ["y"], name="zip", domain="ai.onnx.ml", classlabels_int64s=[*range(8)]),
    ]
    model = models.build(nodes, [("x", FLOAT, [2, 256])], [], {"w": weight(256, 8)})
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    model.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(entry)))
    return model


def custom_domain() -> onnx.ModelProto:
    """A com.microsoft operator with a constant that could be packed, between ordinary layers."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc1"),
        helper.make_node("BiasGelu", ["m", "b"], ["g"], name="gelu", domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "v"], ["y"], name="fc2"),
    ]
    constants = {"w": weight(64, 512), "b": np.ones(512, np.float32), "v": weight(512, 8)}
    model = models.build(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, ["N", 8])], constants)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def branches() -> onnx.ModelProto:
    """If with a large weight in each branch."""
    inner = {}
    for seed, name in enumerate(("then_branch", "else_branch")):
        node = helper.make_node("MatMul", ["x", "w"], ["out"], name="fc")
        constant = numpy_helper.from_array(weight(64, 64, seed=seed), "w")
        out = helper.make_tensor_value_info("out", FLOAT, [2, 64])
        inner[name] = helper.make_graph([node], name, [], [out], [constant])
    node = helper.make_node("If", ["flag"], ["y"], name="if", **inner)
    inputs = [("x", FLOAT, [2, 64]), ("flag", TensorProto.BOOL, [])]
    return models.build([node], inputs, [("y", FLOAT, [2, 64])])


def recurrent() -> onnx.ModelProto:
    """LSTM, ConvTranspose and an embedding, all large enough to be stored in integers."""
    constants = {
        "table": weight(200, 32),
        "w": weight(1, 128, 32),
        "r": weight(1, 128, 32, seed=1),
        "up": weight(32, 16, 3, 3),
        "axes": np.array([1], np.int64),
        "four": np.array([-1, 32, 1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("LSTM", ["e", "w", "r"], ["l"], name="lstm", hidden_size=32),
        helper.make_node("Squeeze", ["l", "axes"], ["s"], name="squeeze"),
        helper.make_node("Reshape", ["s", "four"], ["i"], name="image"),
        helper.make_node("ConvTranspose", ["i", "up"], ["y"], name="up"),
    ]
    outputs = [("y", FLOAT, [None, 16, 3, 3])]
    return models.build(nodes, [("ids", TensorProto.INT64, ["T", "N"])], outputs, constants)


def double() -> onnx.ModelProto:
    """A float64 layer, which stays, before a float32 one."""
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["m"], name="fc1"),
        helper.make_node("Cast", ["m"], ["c"], name="cast", to=FLOAT),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="fc2"),
    ]
    constants = {"v": weight(64, 64).astype(np.float64), "w": weight(64, 64, seed=1)}
    inputs = [("x", TensorProto.DOUBLE, ["N", 64])]
    return models.build(nodes, inputs, [("y", FLOAT, ["N", 64])], constants)


def shared_weight() -> onnx.ModelProto:
    """One matrix read by three layers, once from its other side."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="fc1"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="fc2"),
        helper.make_node("Gemm", ["b", "w"], ["y"], name="fc3", transB=1),
    ]
    return models.build(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, ["N", 64])], {"w": weight(64, 64)})


def output_is_input_or_constant() -> onnx.ModelProto:
    """The weight must stay in float: it is an output too."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")]
    info = ("x", FLOAT, [2, 64])
    return models.build(nodes, [info], [("y", FLOAT, [2, 64]), info, ("w", FLOAT, [64, 64])], {"w": weight(64, 64)})


def bias_of_every_kind() -> onnx.ModelProto:
    """Gemm with a bias per row, one for all, one per element, and factors."""
    constants = {
        "w": weight(64, 64),
        "row": weight(2, 1),
        "all": np.asarray(0.5, np.float32),
        "each": weight(2, 64),
        "column": weight(64),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "row"], ["a"], name="a"),
        helper.make_node("Gemm", ["a", "w", "all"], ["b"], name="b"),
        helper.make_node("Gemm", ["b", "w", "each"], ["c"], name="c"),
        helper.make_node("Gemm", ["c", "w", "column"], ["y"], name="d", alpha=0.5, beta=2.0),
    ]
    return models.build(nodes, [("x", FLOAT, [2, 64])], [("y", FLOAT, [2, 64])], constants)


def dead_channels() -> onnx.ModelProto:
    """A channel of a convolution and one of a Gemm with next to no weights: their biases exceed 32 bits."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((32, 8, 3, 3)).astype(np.float32) / 8,
        "b": np.ones(32, np.float32),
        "v": rng.standard_normal((64, 32)).astype(np.float32) / 6,
        "c": np.ones(64, np.float32),
    }
    constants["w"][3] *= np.float32(1e-20)
    constants["v"][5] *= np.float32(1e-20)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="conv"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], name="fc", transB=1),
    ]
    return models.build(nodes, [("x", FLOAT, ["N", 8, 8, 8])], [("y", FLOAT, ["N", 64])], constants)


BUILDERS = (
    no_inputs,
    no_float_output,
    words,
    sequence_output,
    map_output,
    custom_domain,
    branches,
    recurrent,
    double,
    shared_weight,
    output_is_input_or_constant,
    bias_of_every_kind,
    dead_channels,
)


@pytest.mark.parametrize("target", ["reference", "arm"])
@pytest.mark.parametrize("make", BUILDERS)
def test_without_data(command: Command, tmp_path: Path, make: Callable[[], onnx.ModelProto], target: str) -> None:
    ended = command(models.save(make(), tmp_path), "--allow-unchanged", target=target)
    verified(ended)


def samples_of(model: onnx.ModelProto) -> Mapping[str, models.Array]:
    """Return eight samples of every input, stacked along a first axis."""
    drawn = [models.random_inputs(model, seed) for seed in range(8)]
    stacked = {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}
    return {name: v.astype(str) if v.dtype == object else v for name, v in stacked.items()}


@pytest.mark.parametrize("target", ["reference", "arm"])
@pytest.mark.parametrize("make", [b for b in BUILDERS if b not in (no_inputs, output_is_input_or_constant)])
def test_with_data(command: Command, tmp_path: Path, make: Callable[[], onnx.ModelProto], target: str) -> None:
    model = make()
    np.savez(tmp_path / "data.npz", **samples_of(model))
    path = models.save(model, tmp_path)
    report = verified(command(path, "--data", tmp_path / "data.npz", target=target))
    assert report["verdict"]["file_bytes"]["model.onnx"] < path.stat().st_size


def test_weight_that_is_an_output(command: Command, tmp_path: Path) -> None:
    path = models.save(output_is_input_or_constant(), tmp_path)
    command(path).refused(5, "w: it is an output of the model")


def test_no_inputs_take_no_data(command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 4), np.float32))
    path = models.save(no_inputs(), tmp_path)
    command(path, "--data", tmp_path / "x.npy").refused(3, "has no inputs", "leave out --data")


def test_input_of_unknown_rank(command: Command, tmp_path: Path) -> None:
    model = models.build([helper.make_node("Relu", ["x"], ["y"])], [], [])
    for infos, name in ((model.graph.input, "x"), (model.graph.output, "y")):
        infos.append(helper.make_value_info(name, helper.make_tensor_type_proto(FLOAT, None)))
    command(models.save(model, tmp_path)).refused(3, "'x' declares no number of axes", "declare its shape")


def test_old_opset_that_cannot_be_converted(command: Command, tmp_path: Path) -> None:
    """The conversion is compared on made-up inputs, and no shape but a real one runs."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Reshape", ["m", "shape"], ["y"], name="reshape"),
    ]
    inputs = [("x", FLOAT, [4, 64]), ("shape", TensorProto.INT64, [2])]
    path = models.save(models.build(nodes, inputs, [("y", FLOAT, None)], {"w": weight(64, 64)}, opset=9), tmp_path)
    command(path).refused(3, "does not run in the original model", "--data")
    x = np.random.default_rng(0).standard_normal((8, 4, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, shape=np.tile(np.array([8, 32]), (8, 1)))
    report = verified(command(path, "--data", tmp_path / "data.npz"))
    assert any("opset 9 stays" in note for note in report["model"]["notes"])
    assert onnx.load(tmp_path / "work" / "out" / "model.onnx").opset_import[0].version == 9


def quantized_net() -> onnx.ModelProto:
    """A QDQ model, as other tools write it, with one layer left in float."""
    rng = np.random.default_rng(0)
    constants = {
        "w_q": rng.integers(-127, 128, (64, 64)).astype(np.int8),
        "w_s": np.full(64, 0.002, np.float32),
        "x_s": np.asarray(0.03, np.float32),
        "x_z": np.asarray(128, np.uint8),
        "v": weight(64, 64),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_s", "x_z"], ["x_q"], name="q"),
        helper.make_node("DequantizeLinear", ["x_q", "x_s", "x_z"], ["x_dq"], name="dq"),
        helper.make_node("DequantizeLinear", ["w_q", "w_s"], ["w_dq"], name="wdq", axis=1),
        helper.make_node("MatMul", ["x_dq", "w_dq"], ["m"], name="fc"),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="left"),
    ]
    return models.build(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, ["N", 64])], constants)


@pytest.mark.parametrize("data", [False, True])
def test_quantized_model_is_not_quantized_twice(command: Command, tmp_path: Path, data: bool) -> None:
    model = quantized_net()
    path = models.save(model, tmp_path)
    words = []
    if data:
        np.savez(tmp_path / "data.npz", **samples_of(model))
        words = ["--data", tmp_path / "data.npz"]
    report = verified(command(path, *words, target="arm"))
    assert report["model"]["already_quantized"]
    written = onnx.load(tmp_path / "work" / "out" / "model.onnx")
    pairs = [n for n in written.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x"]
    assert len(pairs) == 1
    kept = next(t for t in written.graph.initializer if t.name == "w_q")
    assert kept.raw_data == next(t for t in model.graph.initializer if t.name == "w_q").raw_data


def test_wholly_quantized_model_passes_through(command: Command, tmp_path: Path) -> None:
    model = quantized_net()
    del model.graph.node[-1]
    model.graph.node[-1].output[0] = "y"
    del model.graph.initializer[-1]
    path = models.save(model, tmp_path)
    command(path).refused(5, "already quantized", "--allow-unchanged")
    report = verified(command(path, "--allow-unchanged"))
    assert all(o["max_abs"] == 0.0 for o in report["verdict"]["outputs"])
