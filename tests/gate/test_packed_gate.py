"""Weights below 8 bits through a whole compilation: what the gate measures, and what it does not let pass."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qcompiler import Recipe, compile_model
from qcompiler.errors import FloorMissed
from qcompiler.gate import verify
from qcompiler.recipe import Floors
from qcompiler.runtime.optimized import integer_share
from tests.models import conv_net, save

FREE = Floors(min_sqnr_db=0.0, min_agreement=0.0)
"""What is under test here is how weights are stored, not what few bits cost a tiny network."""


@pytest.fixture
def model(tmp_path):
    return save(conv_net(channels=32), tmp_path)


def compiled(model, folder, target: str = "x86", weight_bits: int = 4):
    floors = replace(FREE, max_latency_ratio=50.0) if target == "x86" else FREE
    recipe = Recipe(targets=(target,), weight_bits=weight_bits, floors=floors, effort=0)
    return compile_model(model, recipe=recipe, out=folder)[0]


@pytest.mark.parametrize("width", [1, 3, 4])
def test_the_report_says_how_weights_are_stored_and_what_loading_takes(model, tmp_path, width):
    result = compiled(model, tmp_path / "out", weight_bits=width)
    verdict = result.report.verdict
    assert verdict.stored_bytes["weights below 8 bits"] > 0
    assert sum(verdict.stored_bytes.values()) == (result.folder / "model.onnx").stat().st_size
    assert set(verdict.loads) == {"original", "result"}
    assert verdict.integer.unfolded == ()
    document = json.loads((result.folder / "report.json").read_text())
    assert set(document["measured"]["loads"]["result"]) == {"ms", "peak_bytes"}
    assert "loads" not in document["verdict"]
    plan = np.load(result.folder / "plan.npz")
    assert any(plan[key].dtype == np.int8 and plan[key].size <= 2**width for key in plan.files)


def test_the_ort_file_holds_whole_bytes_and_the_report_says_so(model, tmp_path):
    result = compiled(model, tmp_path / "out", target="arm", weight_bits=2)
    sizes = result.report.verdict.file_bytes
    assert sizes["model.ort"] > sizes["model.onnx"]
    note = f"model.ort has {sizes['model.ort']:,} bytes, model.onnx {sizes['model.onnx']:,}"
    assert any(n.startswith(note) for n in result.report.verdict.notes)


def test_weights_that_the_runtime_leaves_packed_are_refused(model, tmp_path, monkeypatch):
    def found(optimized, planned):
        return replace(integer_share(optimized, planned), unfolded=("u_9", "u_10", "u_12", "u_14"))

    monkeypatch.setattr(verify, "integer_share", found)
    cause = r"the runtime unpacks weights at every run: 4 nodes are left in its graph \(u_9, u_10, u_12\)"
    with pytest.raises(FloorMissed, match=cause):
        compiled(model, tmp_path / "out")
