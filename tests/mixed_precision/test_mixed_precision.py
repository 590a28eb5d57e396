"""Mixed precision end to end on the digits network: the widths asked for, in a file that holds its floors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler.compiler import compile_model
from qcompiler.recipe import Floors, Recipe, bits_fields

MODEL = Path(__file__).resolve().parents[2] / "examples" / "digits_cnn.onnx"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    loaded = pytest.importorskip("sklearn.datasets").load_digits()
    folder = tmp_path_factory.mktemp("digits")
    unseen = np.r_[0:256, 1000:1400]
    np.savez(folder / "digits.npz", image=(loaded.images[unseen] / 16).astype(np.float32)[:, None])
    np.save(folder / "labels.npy", loaded.target[unseen])
    return folder


def compiled(digits, name, floors=None, **fields):
    recipe = Recipe(
        targets=("x86",),
        data=str(digits / "digits.npz"),
        labels=str(digits / "labels.npy"),
        floors=floors or Floors(max_latency_ratio=100.0),
        **fields,
    )
    (result,) = compile_model(MODEL, recipe=recipe, out=digits / name)
    return result


def stored_bits(result):
    plan = json.loads((result.folder / "plan.json").read_text())
    return {t["name"]: t["spec"]["num_bits"] for t in plan["tensors"] if t["role"] == "weight"}


def test_a_mean_width_and_its_report(digits):
    result = compiled(digits, "mean", **bits_fields("W4A8"))
    frontier = result.report.frontier
    assert frontier is not None
    assert frontier.chosen.mean_bits <= 4 or result.report.repairs
    assert frontier.correlation is not None
    assert frontier.correlation > 0.6
    assert max(stored_bits(result).values()) < 8
    document = json.loads((result.folder / "report.json").read_text())
    assert document["frontier"]["chosen"]["file_bytes"] == frontier.chosen.file_bytes
    assert "frontier-plot" in (result.folder / "report.html").read_text()
    gains = [d.damage_db for d in result.report.damages]
    assert gains, "layers are ranked also where every floor holds"
    assert gains == sorted(gains, reverse=True)
    assert all(d.action for d in result.report.damages)


def test_a_size_limit_is_met_by_fewer_bits(digits):
    whole = (compiled(digits, "whole").folder / "model.onnx").stat().st_size
    limit = whole - 3000
    floors = Floors(max_size_bytes=limit, max_latency_ratio=100.0)
    result = compiled(digits, "small", floors=floors)
    assert result.report.verdict.held
    assert (result.folder / "model.onnx").stat().st_size <= limit
    assert min(stored_bits(result).values()) < 8
