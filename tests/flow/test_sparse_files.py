"""What the command writes for pruned weights: raw streams that decode to the plan, and both sizes of an .ort file."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from qcompiler.cli import main
from qcompiler.codec.f2f_file import from_bytes
from qcompiler.codec.fixed_to_fixed import decrypt
from tests.models import save
from tests.passes.test_pack_bits import conv_and_gemm

OPEN = ("--min-sqnr=-1000", "--min-agreement", "0", "--calibration-samples", "8")
NOT_TIMED = ("--max-latency-ratio", "1000")


def compiled(folder, *words):
    """Return the folder that the command writes for a small network, its weights pruned to 80 %."""
    proto: onnx.ModelProto = conv_and_gemm()
    samples = np.random.default_rng(0).standard_normal((24, 24, 3, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=samples)
    model = save(proto, folder)
    place = folder / "result"
    asked = [str(model), "--data", str(folder / "data.npz"), "--sparsity", "0.8", *OPEN, *words, "-o", str(place)]
    assert main(asked) == 0
    return place


def test_raw_streams_beside_the_model_decode_to_the_plan(tmp_path):
    place = compiled(tmp_path, "--target", "x86", "--sparse-format", "f2f", *NOT_TIMED)
    plan = json.loads((place / "plan.json").read_text(encoding="utf-8"))
    arrays = np.load(place / "plan.npz")
    codes = [arrays[t["codes"]] for t in plan["tensors"] if t.get("sparsity") is not None]
    files = sorted((place / "f2f").glob("*.f2f"))
    assert len(files) == len(codes) == 2
    decoded = {}
    for file in files:
        stored = from_bytes(file.read_bytes())
        numbers = decrypt(stored)
        decoded[numbers.size] = numbers.view(np.int8)
        matrix = np.load(file.with_suffix(".matrix.npy"))
        assert np.array_equal(matrix, stored.network.matrix())
    for planned in codes:
        assert np.array_equal(decoded[planned.size], planned.reshape(-1))
        assert (planned == 0).mean() > 0.5


def test_no_streams_are_written_where_the_file_holds_none(tmp_path):
    assert not (compiled(tmp_path, "--target", "x86", "--sparse-format", "bitmask", *NOT_TIMED) / "f2f").exists()


@pytest.mark.parametrize("form", ["bitmask", "f2f"])
def test_the_report_has_the_size_of_both_files_of_sparse_weights(tmp_path, form):
    """The runtime's converter decodes what it can: its file holds dense weights."""
    place = compiled(tmp_path, "--target", "arm", "--sparse-format", form)
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    sizes = report["verdict"]["file_bytes"]
    for name in ("model.onnx", "model.ort"):
        assert sizes[name] == (place / name).stat().st_size
    weights = 24 * 216 + 32 * 216
    assert sizes["model.ort"] > weights
    if form == "bitmask":
        assert sizes["model.onnx"] < weights
