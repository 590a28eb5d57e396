"""Models that cannot be compiled: each ends in one line that says what, where and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tests.robustness.conftest import Command

X = ("x", models.FLOAT, ["N", 16])
Y = ("y", models.FLOAT, ["N", 4])
RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")


def small(*nodes: onnx.NodeProto, **options: int) -> onnx.ModelProto:
    return models.build(list(nodes), [("x", models.FLOAT, [2, 4])], [("y", models.FLOAT, [2, 4])], **options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("is empty", "export")),
        (b"just some text\n", ("is not an ONNX file", "give a model")),
        (models.dense_net().SerializeToString()[:700], ("is truncated or damaged", "copy or export it again")),
        (onnx.ModelProto(ir_version=8).SerializeToString(), ("is not an ONNX model", "give a model")),
    ],
)
def test_files_that_are_no_models(command: Command, tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    ended = command(path)
    ended.refused(3, str(path), *words)
    assert list(ended.folder.iterdir()) == []


def test_no_file(command: Command) -> None:
    command("nowhere.onnx").refused(3, "nowhere.onnx", "no such file", "check the path")


def remove(folder: Path) -> None:
    (folder / "weights.bin").unlink()


def shorten(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(100)


def move_outside(folder: Path) -> None:
    (folder / "weights.bin").rename(folder.parent / "weights.bin")
    (folder / "weights.bin").symlink_to(folder.parent / "weights.bin")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove, ("is missing", "weights.bin", "copy it there")),
        (shorten, ("is short", "weights.bin", "copy it again")),
        (move_outside, ("outside the model's folder", "move the file beside the model")),
    ],
)
def test_external_data(command: Command, tmp_path: Path, spoil: Callable[[Path], None], words: tuple[str, ...]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = models.with_external_data(models.dense_net(width=64), folder)
    spoil(folder)
    command(path).refused(3, str(path), *words)


@pytest.mark.parametrize("data", [False, True])
def test_external_data_in_its_place(command: Command, tmp_path: Path, data: bool) -> None:
    path = models.with_external_data(models.dense_net(width=64), tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32))
    ended = command(path, *(["--data", tmp_path / "x.npy"] if data else []))
    assert ended.code == 0, ended.err
    assert sorted(p.name for p in (ended.folder / "out").glob("model*")) == ["model.onnx"]


CYCLE = (helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), RELU)
TWICE = (RELU, helper.make_node("Neg", ["x"], ["y"]))
SAME_NODE_NAME = (
    helper.make_node("Abs", ["x"], ["a"], name="n"),
    helper.make_node("Abs", ["a"], ["y"], name="n"),
)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (small(*CYCLE), ("not acyclic",)),
        (small(*TWICE), ("Duplicate definition of name (y)",)),
        (small(*SAME_NODE_NAME), ("same node name (n)",)),
        (small(RELU, opset=99), ("opset 99 is newer than", "convert the model")),
        (small(RELU, opset=1), ("opset 1 is old", "convert the model")),
        (small(helper.make_node("Foo", ["x"], ["y"])), ("Foo", "export the model")),
        (small(helper.make_node("Foo", ["x"], ["y"], domain="my.domain")), ("my.domain", "export")),
    ],
)
def test_models_that_the_runtime_refuses(
    command: Command, tmp_path: Path, model: onnx.ModelProto, words: tuple[str, ...]
) -> None:
    if model.graph.node[0].domain:
        model.opset_import.append(helper.make_opsetid(model.graph.node[0].domain, 1))
    path = models.save(model, tmp_path)
    command(path).refused(3, str(path), "does not load it", *words)


@pytest.mark.parametrize("field", [b"relu1", b"bias2", b"tests", b"graph"])
def test_names_that_are_no_text(command: Command, tmp_path: Path, field: bytes) -> None:
    content = models.dense_net().SerializeToString()
    assert field in content
    path = tmp_path / "m.onnx"
    path.write_bytes(content.replace(field, b"\xff" + field[1:]))
    command(path).refused(3, str(path), "is not UTF-8", "rename it")


def test_newer_ir_version(command: Command, tmp_path: Path) -> None:
    model = models.dense_net()
    model.ir_version = 99
    command(models.save(model, tmp_path)).refused(3, "IR version 99 is newer than", "save the model with")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (TensorProto.COMPLEX64, ("complex64", "export")),
        (TensorProto.BFLOAT16, ("BFLOAT16", "cast")),
        (99, ("Invalid tensor data type 99", "export")),
    ],
)
def test_unsupported_types(command: Command, tmp_path: Path, kind: int, words: tuple[str, ...]) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model = models.build([node], [("x", kind, [2, 4])], [("y", kind, [2, 4])])
    command(models.save(model, tmp_path)).refused(3, *words)


def changed_weight(value: float) -> onnx.ModelProto:
    model = models.dense_net(width=64)
    (weight,) = [t for t in model.graph.initializer if t.name == "w2"]
    array = numpy_helper.to_array(weight).copy()
    array[3, 1] = value
    weight.CopyFrom(numpy_helper.from_array(array, "w2"))
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(command: Command, tmp_path: Path, value: float) -> None:
    path = models.save(changed_weight(value), tmp_path)
    command(path).refused(3, str(path), "'w2' holds", "'fc2'", "train or export it again")


@pytest.mark.parametrize("data", [False, True])
def test_zero_size_tensors(command: Command, tmp_path: Path, data: bool) -> None:
    """No weight, no row: nothing to compress, and nothing that falls over."""
    empty = np.zeros((0, 4), np.float32)
    nodes = [
        helper.make_node("Concat", ["w", "e"], ["c"], name="concat", axis=0),
        helper.make_node("MatMul", ["x", "c"], ["m"], name="fc"),
        helper.make_node("MatMul", ["z", "e"], ["n"], name="nothing"),
        helper.make_node("Add", ["m", "n"], ["y"], name="sum"),
    ]
    constants = {"w": np.eye(16, 4, dtype=np.float32), "e": empty, "z": np.zeros((1, 0), np.float32)}
    path = models.save(models.build(nodes, [X], [Y], constants), tmp_path)
    words = []
    if data:
        np.save(tmp_path / "x.npy", np.ones((8, 16), np.float32))
        words = ["--data", tmp_path / "x.npy"]
    command(path, *words).refused(5, "nothing to compress", "--allow-unchanged")
    assert command(path, *words, "--allow-unchanged").code == 0


@pytest.mark.parametrize("target", ["reference", "arm"])
def test_nothing_to_compress(command: Command, tmp_path: Path, target: str) -> None:
    path = models.save(small(RELU), tmp_path)
    ended = command(path, target=target)
    ended.refused(5, str(path), "nothing to compress", target, "--allow-unchanged")
    assert list(ended.folder.iterdir()) == []
    ended = command(path, "--allow-unchanged", target=target)
    assert ended.code == 0, ended.err
    assert (ended.folder / "out" / "report.html").is_file()


def test_reason_for_each_tensor(command: Command, tmp_path: Path) -> None:
    line = command(models.save(models.dense_net(width=4), tmp_path)).refused(5)
    for name in ("w1", "w2", "b1"):
        assert f"{name}: " in line


def test_nothing_for_several_targets_leaves_no_folder(command: Command, tmp_path: Path) -> None:
    path = models.save(models.dense_net(width=4), tmp_path)
    ended = command(path, "--target", "arm", "-o", "new/place")
    ended.refused(5, "nothing to compress")
    assert list(ended.folder.iterdir()) == []
