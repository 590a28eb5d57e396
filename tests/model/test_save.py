"""Saving: the same model back, the same bytes, bounded memory, external data only where it must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from qcompiler.errors import OutputError, QCompileError
from qcompiler.model import edit
from qcompiler.model import save as save_module
from qcompiler.model.load import load_model
from qcompiler.model.save import constant_bytes, save_model, to_proto
from tests import models

BUILDERS = (models.dense_net, models.conv_net, models.branch_net, models.loop_net, models.token_net)


@pytest.fixture
def stream_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "_STREAM_ABOVE_BYTES", 0)


@pytest.mark.parametrize("make", BUILDERS)
@pytest.mark.parametrize("stream", [False, True])
def test_written_model_is_valid_and_computes_the_same(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stream:
        monkeypatch.setattr(save_module, "_STREAM_ABOVE_BYTES", 0)
    path = models.save(make(), tmp_path)
    model = load_model(path).model
    written = tmp_path / "out.onnx"
    assert save_model(model, written) == (written,)
    onnx.checker.check_model(written, full_check=True)
    feeds = models.random_inputs(path)
    for a, b in zip(models.run(path, feeds), models.run(written, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def test_streamed_message_is_what_protobuf_writes(tmp_path: Path, stream_everything: None) -> None:
    model = ir.serde.deserialize_model(models.conv_net())
    save_model(model, tmp_path / "m.onnx")
    streamed = onnx.load(tmp_path / "m.onnx")
    plain = to_proto(model)
    assert streamed.ByteSize() == (tmp_path / "m.onnx").stat().st_size
    by_name = {t.name: numpy_helper.to_array(t) for t in streamed.graph.initializer}
    assert len(by_name) == len(plain.graph.initializer)
    for tensor in plain.graph.initializer:
        np.testing.assert_array_equal(by_name[tensor.name], numpy_helper.to_array(tensor))
    del streamed.graph.initializer[:], plain.graph.initializer[:]
    assert streamed == plain


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**21, 2**31, 2**40])
def test_varint_as_protobuf_writes_it(value: int) -> None:
    written = onnx.StringStringEntryProto(key="a").SerializeToString()
    assert written[0] == 1 << 3 | 2
    reference = onnx.TensorProto(dims=[value]).SerializeToString()[1:] if value else b"\0"
    assert save_module._varint(value) == reference.lstrip(b"\x08")[-len(save_module._varint(value)) :]


def test_same_model_same_bytes_and_model_unchanged(tmp_path: Path, stream_everything: None) -> None:
    model = load_model(models.save(models.conv_net(), tmp_path)).model
    before = ir.to_onnx_text(model)
    contents = []
    for name in ("a.onnx", "b.onnx"):
        save_model(model, tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    again = load_model(tmp_path / "model.onnx").model
    save_model(again, tmp_path / "c.onnx")
    assert contents[0] == contents[1] == (tmp_path / "c.onnx").read_bytes()
    assert ir.to_onnx_text(model) == before


def test_types_of_inner_values_are_left_out_where_every_runtime_infers_them(tmp_path: Path) -> None:
    loaded = load_model(models.save(models.conv_net(), tmp_path))
    assert not to_proto(loaded.model).graph.value_info
    node = next(iter(loaded.model.graph))
    node.domain = "my.domain"
    assert [i.name for i in to_proto(loaded.model).graph.value_info] == [node.outputs[0].name]


@pytest.mark.parametrize("limit", [2**30, 0])
def test_external_data_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(save_module, "EXTERNAL_ABOVE_BYTES", limit)
    monkeypatch.setattr(save_module, "_STREAM_ABOVE_BYTES", 256)
    path = models.with_external_data(models.dense_net(), tmp_path)
    model = load_model(path).model
    tensors = [v.const_value for v in model.graph.initializers.values()]
    assert all(isinstance(t, ir.ExternalTensor) for t in tensors)
    folder = tmp_path / "out"
    folder.mkdir()
    files = save_model(model, folder / "m.onnx")
    assert [f.name for f in files] == (["m.onnx"] if limit else ["m.onnx", "m.onnx.data"])
    assert sorted(folder.iterdir()) == sorted(files)
    assert [v.const_value for v in model.graph.initializers.values()] == tensors
    feeds = models.random_inputs(path)
    expected = models.run(path, feeds)
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_array_equal(models.run(folder / "m.onnx", feeds)[0], expected[0])
    assert constant_bytes(load_model(folder / "m.onnx").model) == constant_bytes(model)


@pytest.mark.parametrize("limit", [2**30, 0])
def test_lazy_tensors_are_made_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream_everything: None, limit: int
) -> None:
    monkeypatch.setattr(save_module, "EXTERNAL_ABOVE_BYTES", limit)
    model = load_model(models.save(models.dense_net(), tmp_path)).model
    calls = []
    for name, value in model.graph.initializers.items():
        array = edit.constant_of(value)
        assert array is not None

        def evaluate(name: str = name, array: object = array) -> ir.TensorProtocol:
            calls.append(name)
            return ir.tensor(array * 2, name=name)  # type: ignore[operator]

        lazy = ir.LazyTensor(evaluate, ir.DataType.FLOAT, ir.Shape(array.shape), name=name)
        edit.replace_constant(value, lazy)
    assert calls == []
    save_model(model, tmp_path / "out.onnx")
    assert sorted(calls) == ["b1", "b2", "w1", "w2"]
    doubled = load_model(tmp_path / "out.onnx").model.graph.initializers["b1"].const_value
    original = load_model(tmp_path / "model.onnx").model.graph.initializers["b1"].const_value
    assert doubled is not None
    assert original is not None
    np.testing.assert_array_equal(doubled.numpy(), 2 * original.numpy())


def test_tensor_that_is_not_what_it_says(tmp_path: Path, stream_everything: None) -> None:
    model = load_model(models.save(models.dense_net(), tmp_path)).model
    wrong = ir.LazyTensor(lambda: ir.tensor(np.zeros(3, np.float32)), ir.DataType.FLOAT, ir.Shape([32]))
    edit.replace_constant(model.graph.initializers["b1"], wrong)
    with pytest.raises(QCompileError, match="'b1' has 12 bytes, not 128"):
        save_model(model, tmp_path / "out.onnx")


def test_one_tensor_under_two_names(tmp_path: Path, stream_everything: None) -> None:
    model = load_model(models.save(models.branch_net(), tmp_path)).model
    graph = model.graph
    shared = graph.initializers["shared"].const_value
    assert shared is not None
    copy = edit.add_initializer(graph, "again", ir.tensor(shared.numpy()))
    copy.const_value = shared
    node = ir.node("Add", [graph.outputs[0], copy])
    node.outputs[0].name = "z"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 8])
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    save_model(model, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert sorted(t.name for t in written.graph.initializer) == ["again", "shared"]
    models.session(tmp_path / "out.onnx")


def test_strings_and_sub_byte_constants(tmp_path: Path, stream_everything: None) -> None:
    packed = helper.make_tensor("p", onnx.TensorProto.INT4, [3], [1, -2, 3])
    model = models.build(
        [helper.make_node("DequantizeLinear", ["p", "s"], ["y"]), helper.make_node("Identity", ["t"], ["z"])],
        [],
        [("y", models.FLOAT, [3]), ("z", onnx.TensorProto.STRING, [2])],
        {"s": np.asarray(0.5, np.float32), "t": np.array(["a", "gr\u00fc\u00df"], dtype=object)},
        opset=21,
    )
    model.ir_version = 10
    model.graph.initializer.append(packed)
    save_model(load_model(models.save(model, tmp_path)).model, tmp_path / "out.onnx")
    numbers, words = models.run(tmp_path / "out.onnx", {})
    np.testing.assert_array_equal(numbers, [0.5, -1.0, 1.5])
    assert list(words) == ["a", "gr\u00fc\u00df"]


def test_unwritable_file(tmp_path: Path) -> None:
    model = load_model(models.save(models.dense_net(), tmp_path)).model
    with pytest.raises(OutputError, match="cannot be written") as caught:
        save_model(model, tmp_path / "missing" / "m.onnx")
    assert "\n" not in str(caught.value)
