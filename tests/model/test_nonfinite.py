"""NaN and infinity: refused in weights, noted where a model may mean them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.errors import ModelError
from qcompiler.model import nonfinite
from qcompiler.model.load import load_model
from tests import models


def spoil(model: onnx.ModelProto, name: str, value: float, index: int = 3) -> onnx.ModelProto:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = models.numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[index] = value
    tensor.CopyFrom(models.numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("make", "name", "where"),
    [
        (models.dense_net, "w1", "Gemm node 'fc1'"),
        (models.dense_net, "w2", "MatMul node 'fc2'"),
        (models.conv_net, "dw.w", "Conv node 'dw'"),
        (models.conv_net, "bn.var", "BatchNormalization node 'bn1'"),
        (models.token_net, "lstm.r", "LSTM node 'lstm'"),
    ],
)
def test_weights_are_refused(tmp_path: Path, make: object, name: str, where: str, value: float) -> None:
    path = models.save(spoil(make(), name, value), tmp_path)  # type: ignore[operator]
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert f"'{name}'" in str(caught.value)
    assert where in str(caught.value)
    assert ("1 NaN" if np.isnan(value) else "1 infinite") in str(caught.value)


def test_weight_behind_a_transpose(tmp_path: Path) -> None:
    model = models.dense_net()
    model.graph.node.insert(0, models.helper.make_node("Transpose", ["w1"], ["wt"], perm=[0, 1]))
    model.graph.node[1].input[1] = "wt"
    with pytest.raises(ModelError, match="'w1'"):
        load_model(models.save(spoil(model, "w1", np.nan), tmp_path))


def test_weight_in_a_branch(tmp_path: Path) -> None:
    model = models.branch_net()
    tensor = model.graph.node[0].attribute[1].g.initializer[0]
    tensor.CopyFrom(models.numpy_helper.from_array(np.full((8, 8), np.nan, np.float32), "w"))
    with pytest.raises(ModelError, match="64 NaN"):
        load_model(models.save(model, tmp_path))


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_masks_are_noted(tmp_path: Path, value: float) -> None:
    path = models.save(spoil(models.dense_net(), "b2", value), tmp_path)
    (note,) = load_model(path).notes
    assert "'b2'" in note


def test_tables_may_hold_infinity_but_not_nan(tmp_path: Path) -> None:
    assert load_model(models.save(spoil(models.token_net(), "table", -np.inf), tmp_path)).notes
    with pytest.raises(ModelError, match="'table'"):
        load_model(models.save(spoil(models.token_net(), "table", np.nan), tmp_path))


@pytest.mark.parametrize("index", [0, 30, 511])
def test_external_data_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    monkeypatch.setattr(nonfinite, "_CHUNK_BYTES", 100)
    model = spoil(models.dense_net(), "w1", np.nan, index)
    with pytest.raises(ModelError, match="1 NaN"):
        load_model(models.with_external_data(model, tmp_path))


def test_what_was_not_searched_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite, "SCAN_LIMIT_BYTES", 0)
    path = models.save(spoil(models.dense_net(), "w1", np.nan), tmp_path)
    assert "were not searched for NaN" in load_model(path).notes[0]


def test_large_finite_values_are_finite(tmp_path: Path) -> None:
    model = models.dense_net()
    for index in range(20):
        spoil(model, "w1", 3e38, index)
    half = np.full((4, 4), 60000, np.float16)
    model.graph.initializer.append(models.numpy_helper.from_array(half, "half"))
    model.graph.node.append(models.helper.make_node("Neg", ["half"], ["z"]))
    model.graph.output.append(models.helper.make_tensor_value_info("z", models.TensorProto.FLOAT16, [4, 4]))
    assert load_model(models.save(model, tmp_path)).notes == ()
