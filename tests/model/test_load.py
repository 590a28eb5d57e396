"""Loading: every refusal in one line, every accepted file in normal form with the outputs of the original."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.model import load as load_module
from qcompiler.model.fingerprint import file_sha256, files_sha256
from qcompiler.model.load import load_model
from tests import models
from tests.conftest import SHARED_DATA
from tests.model.compare import assert_same_outputs, stored_inputs

X = ("x", models.FLOAT, [1, 4])
Y = ("y", models.FLOAT, [1, 4])
SQUARE = np.ones((4, 4), np.float32)


def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def matmul(weight: onnx.TensorProto) -> onnx.ModelProto:
    model = models.build([node("MatMul", ["x", "w"], ["y"], name="fc")], [X], [Y])
    model.graph.initializer.append(weight)
    return model


def external(location: str | None, **fields: object) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=models.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        if value is not None:
            weight.external_data.add(key=key, value=str(value))
    return matmul(weight)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert caught.value.exit_code == 3
    return message


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "is empty"),
        (b"hello, this is a text", "is not an ONNX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX file"),
        (b"\x80\x04\x95" + bytes(50), "is not an ONNX file"),
        (models.dense_net().SerializeToString()[:-20], "is truncated or damaged"),
        (models.dense_net().SerializeToString()[:400], "is truncated or damaged"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "is not an ONNX model"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, wanted: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert wanted in refusal(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.onnx")
    assert "is not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "is not a file" in refusal(tmp_path / "pipe.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = models.save(models.dense_net(), tmp_path)
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_more_than_protobuf_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    assert "limit of 2 GiB" in refusal(path)


RELU = node("Relu", ["x"], ["y"])
REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "cycle": (
        lambda: models.build([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), RELU], [X], [Y]),
        "the graph is not acyclic",
    ),
    "duplicate value": (
        lambda: models.build([RELU, node("Neg", ["x"], ["y"])], [X], [Y]),
        "Duplicate definition of name (y)",
    ),
    "duplicate input": (lambda: models.build([RELU], [X, X], [Y]), "Duplicate definition-site for (x)"),
    "constant that a node makes": (
        lambda: models.build([node("Neg", ["x"], ["w"]), RELU], [X], [Y], {"w": SQUARE}),
        "Duplicate definition of name (w)",
    ),
    "duplicate node name": (
        lambda: models.build([node("Abs", ["x"], ["a"], name="n"), node("Abs", ["a"], ["y"], name="n")], [X], [Y]),
        "two nodes with same node name (n)",
    ),
    "missing input": (
        lambda: models.build([node("Add", ["x", "zz"], ["y"])], [X], [Y]),
        "'zz' is not a graph input",
    ),
    "missing output": (lambda: models.build([node("Relu", ["x"], ["q"])], [X], [Y]), "(y) does not exist"),
    "opset from the future": (lambda: models.build([RELU], [X], [Y], opset=99), "opset 99 is newer than"),
    "opset 1": (lambda: models.build([RELU], [X], [Y], opset=1), "opset 1 is old"),
    "unknown operator": (
        lambda: models.build([node("Foo", ["x"], ["y"])], [X], [Y]),
        "No Op registered for Foo",
    ),
    "operator without a kernel": (
        lambda: models.build([node("Identity", ["x"], ["y"])], *[[(n, TensorProto.COMPLEX64, [1])] for n in "xy"]),
        "complex64",
    ),
    "unknown type": (lambda: models.build([RELU], [("x", 99, [1, 4])], [Y]), "Invalid tensor data type 99"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_the_runtime_refuses(tmp_path: Path, name: str) -> None:
    make, wanted = REFUSED[name]
    path = models.save(make(), tmp_path)
    with pytest.raises(Exception, match=r"."):
        models.session(path)
    message = refusal(path)
    assert wanted in message
    assert "onnxruntime_src" not in message


def test_unknown_domain_is_named(tmp_path: Path) -> None:
    model = models.build([node("Foo", ["x"], ["y"], domain="my.domain")], [X], [Y])
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    message = refusal(models.save(model, tmp_path))
    assert "my.domain:Foo" in message
    assert "replace this operator" in message


def broken_weight(**changes: object) -> onnx.ModelProto:
    weight = numpy_helper.from_array(SQUARE, "w")
    for field, value in changes.items():
        setattr(weight, field, value)
    return matmul(weight)


def test_weight_of_unknown_type(tmp_path: Path) -> None:
    assert "'w'" in refusal(models.save(broken_weight(data_type=99), tmp_path))


def test_weight_with_too_few_bytes(tmp_path: Path) -> None:
    assert "onnxruntime" in refusal(models.save(broken_weight(raw_data=bytes(12)), tmp_path))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"location": "nowhere.bin"}, "no file 'nowhere.bin'"),
        ({"location": None}, "no file ''"),
        ({"location": "folder"}, "no file 'folder'"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "../secret.bin"}, "outside the model's folder"),
        ({"location": "folder/../../secret.bin"}, "outside the model's folder"),
        ({"location": "C:\\secret.bin"}, "outside the model's folder"),
        ({"location": "link.bin"}, "outside the model's folder"),
        ({"location": "short.bin"}, "has 60 bytes, 64 are needed"),
        ({"location": "w.bin", "offset": 32}, "has 64 bytes, 96 are needed"),
        ({"location": "w.bin", "offset": -4}, "described wrongly"),
        ({"location": "w.bin", "offset": "here"}, "described wrongly"),
        ({"location": "w.bin", "length": 32}, "states 32 bytes"),
        ({"location": "w.bin", "length": 10**15}, "states 1000000000000000 bytes"),
    ],
)
def test_external_data_that_is_refused(tmp_path: Path, fields: dict[str, object], wanted: str) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "w.bin").write_bytes(SQUARE.tobytes())
    (folder / "short.bin").write_bytes(bytes(60))
    message = refusal(models.save(external(**fields), folder))  # type: ignore[arg-type]
    assert wanted in message
    assert "'w'" in message


@pytest.mark.parametrize("location", ["w.bin", "inside.bin", "hard.bin", "folder/w.bin"])
def test_external_data_inside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("w.bin", "folder/w.bin"):
        (tmp_path / name).write_bytes(SQUARE.tobytes())
    (tmp_path / "inside.bin").symlink_to("w.bin")
    (tmp_path / "hard.bin").hardlink_to(tmp_path / "w.bin")
    path = models.save(external(location), tmp_path)
    loaded = load_model(path)
    assert loaded.facts.file_bytes == path.stat().st_size + 64
    assert loaded.facts.sha256 == files_sha256([path, tmp_path / location])
    assert_same_outputs(path, loaded, tmp_path, models.random_inputs(path))


def test_external_constant_node(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes((2 * SQUARE).tobytes())
    weight = external("w.bin").graph.initializer[0]
    nodes = [node("Constant", [], ["w"], value=weight), node("MatMul", ["x", "w"], ["y"])]
    path = models.save(models.build(nodes, [X], [Y]), tmp_path)
    assert_same_outputs(path, load_model(path), tmp_path, models.random_inputs(path))


def test_link_to_a_model_looks_for_data_beside_the_link(tmp_path: Path) -> None:
    stored = tmp_path / "store"
    stored.mkdir()
    models.save(external("w.bin"), stored)
    (tmp_path / "link.onnx").symlink_to(stored / "model.onnx")
    assert "no file 'w.bin'" in refusal(tmp_path / "link.onnx")


BUILDERS = (
    models.dense_net,
    models.conv_net,
    models.old_conv_net,
    models.branch_net,
    models.loop_net,
    models.function_net,
    models.token_net,
)


@pytest.mark.parametrize("make", BUILDERS)
def test_outputs_stay(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    path = models.save(make(), tmp_path)
    assert_same_outputs(path, load_model(path), tmp_path, models.random_inputs(path))


def test_facts(tmp_path: Path) -> None:
    path = models.save(models.token_net(), tmp_path, "words.onnx")
    facts = load_model(path).facts
    assert facts.file_name == "words.onnx"
    assert facts.sha256 == file_sha256(path)
    assert facts.file_bytes == path.stat().st_size
    assert (facts.opset, facts.ir_version, facts.producer, facts.nodes) == (17, 8, "tests", 6)
    assert facts.parameters == 50 * 12 + 24 * 12 + 24 * 6 + 6 + 6 * 50
    assert facts.inputs == (("ids", "int64", ("N", "T")),)
    assert facts.outputs == (("logits", "float", ("T", "N", "50")),)
    assert not facts.already_quantized


def test_facts_state_the_opset_of_the_file(tmp_path: Path) -> None:
    loaded = load_model(models.save(models.old_conv_net(), tmp_path))
    assert loaded.facts.opset == 9
    assert loaded.model.opset_imports[""] == 17
    assert loaded.facts.notes == loaded.notes
    assert any("opset 9 converted to 17" in n for n in loaded.notes)


def test_quantized_model_is_recognized(tmp_path: Path) -> None:
    constants = {"s": np.asarray(0.1, np.float32), "z": np.asarray(3, np.uint8)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    path = models.save(models.build(nodes, [X], [Y], {k: np.asarray(v) for k, v in constants.items()}), tmp_path)
    assert load_model(path).facts.already_quantized


def test_origin_names_the_nodes_of_the_file(tmp_path: Path) -> None:
    assert load_model(models.save(models.function_net(), tmp_path)).origin == {
        "matmul": "first",
        "Relu": "first",
        "matmul_2": "second",
        "Relu_2": "second",
    }
    assert load_model(models.save(models.branch_net(), tmp_path)).origin == {
        "if": "if",
        "fc": "fc",
        "add": "add",
        "fc_1": "fc",
        "add_1": "add",
    }
    old = load_model(models.save(models.old_conv_net(), tmp_path))
    assert set(old.origin.values()) >= {"conv", "relu", "up", "squeeze"}
    unnamed = models.build([node("Abs", ["x"], ["a"]), node("Abs", ["a"], ["y"])], [X], [Y])
    assert load_model(models.save(unnamed, tmp_path)).origin == {"Abs": "", "Abs_1": ""}


def test_reader_that_fails_where_the_runtime_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object) -> None:
        raise KeyError("strange\nthing")

    monkeypatch.setattr(load_module, "to_ir", fail)
    message = refusal(models.save(models.dense_net(), tmp_path))
    assert "onnxruntime loads it" in message
    assert "strange" in message


SPECIAL_INPUTS = {
    "silero_vad.onnx": {
        "input": np.random.default_rng(0).standard_normal((1, 576)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.asarray(16000, np.int64),
    }
}

BEYOND_NUMPY = ("cast_FLOAT_to_BFLOAT16", "dequantizelinear_e4m3fn")
"""Their inputs or outputs have types that onnxruntime's Python cannot carry."""


def _shared(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(SHARED_DATA)) for p in SHARED_DATA.glob(pattern)) or ["absent"]


@pytest.mark.parametrize("name", [*_shared("models/*.onnx"), *_shared("awkward/**/*.onnx")])
def test_shared_models(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / name
    try:
        opened = models.session(path)
    except Exception:
        refusal(path)
        return
    loaded = load_model(path)
    stored = path.parent / "test_data_set_0"
    if not stored.is_dir():
        feeds = SPECIAL_INPUTS.get(path.name) or models.random_inputs(path)
        assert_same_outputs(path, loaded, tmp_path, feeds)
    elif path.parent.name not in BEYOND_NUMPY:
        assert_same_outputs(path, loaded, tmp_path, stored_inputs(stored, opened))
