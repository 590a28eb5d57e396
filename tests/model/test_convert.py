"""Opset conversion, and that it is undone where it is not known to be right."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.model import convert
from qcompiler.model.load import load_model
from tests import models
from tests.model.compare import assert_same_outputs


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_old_opsets_are_converted(tmp_path: Path, opset: int) -> None:
    path = models.save(models.dense_net(opset=opset), tmp_path)
    loaded = load_model(path)
    assert loaded.model.opset_imports[""] == 17
    assert loaded.notes == (f"opset {opset} converted to 17; outputs compared equal on made-up inputs",)
    assert set(loaded.origin.values()) == {"fc1", "relu1", "fc2", "bias2"}
    assert_same_outputs(path, loaded, tmp_path, models.random_inputs(path))
    onnx.checker.check_model(tmp_path / "normalized.onnx")


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_new_opsets_stay(tmp_path: Path, opset: int) -> None:
    loaded = load_model(models.save(models.dense_net(opset=opset), tmp_path))
    assert loaded.model.opset_imports[""] == opset
    assert loaded.notes == ()


def test_wrong_conversion_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = convert._convert

    def wrong(model: object, target: int) -> str:
        reason = right(model, target)  # type: ignore[arg-type]
        weight = model.graph.initializers["w"]  # type: ignore[attr-defined]
        weight.const_value = convert.ir.tensor(weight.const_value.numpy() * 1.001, name="w")
        return reason

    monkeypatch.setattr(convert, "_convert", wrong)
    path = models.save(models.old_conv_net(), tmp_path)
    loaded = load_model(path)
    assert loaded.model.opset_imports[""] == 9
    assert "opset 9 stays" in loaded.notes[0]
    assert "output 'y' differs" in loaded.notes[0]
    assert_same_outputs(path, loaded, tmp_path, models.random_inputs(path))


def test_failed_conversion_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(model: object, target: int) -> str:
        tried.append(target)
        return "no adapter"

    monkeypatch.setattr(convert, "_convert", fail)
    loaded = load_model(models.save(models.old_conv_net(), tmp_path))
    assert tried == [17, 13]
    assert loaded.notes == ("opset 9 stays, and with it only what that opset can express: no adapter",)


def test_what_cannot_be_compared_is_not_converted(tmp_path: Path) -> None:
    node = helper.make_node("SequenceAt", ["s", "i"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("s", models.FLOAT, [2])
    model = models.build([node], [("i", TensorProto.INT64, [])], [("y", models.FLOAT, [2])], opset=11)
    model.graph.input.insert(0, sequence)
    loaded = load_model(models.save(model, tmp_path))
    assert loaded.model.opset_imports[""] == 11
    assert "does not run on made-up inputs" in loaded.notes[0]


def test_converter_names_its_failure(tmp_path: Path) -> None:
    model = load_model(models.save(models.dense_net(), tmp_path)).model
    model.opset_imports[""] = 12
    model.graph[0].op_type = "Unheard"
    assert "17" in convert._convert(model, 17)
