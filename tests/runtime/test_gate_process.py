"""The gate's child process: what it finds, and that its crash is a finding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler.records import OutputComparison
from qcompiler.runtime import gate_process
from qcompiler.runtime.gate_process import (
    GateJob,
    latency_comparison,
    latency_profile,
    output_comparison,
    run_gate,
    write_samples,
)
from qcompiler.runtime.optimized import Origins
from tests.compiling import samples, start
from tests.models import conv_net, dense_net, save

STUBS = {
    "crash": 'import os, signal; print(\'{"stage": "load", "memory": {}, "seconds": {}}\', flush=True); '
    "os.kill(os.getpid(), signal.SIGKILL)",
    "exit": "import sys; sys.exit(9)",
    "noise": "print('hello'); print('3'); print('[]'); print('{\"a\": 1}'); "
    'print(\'{"stage": "failed", "reason": "two\\\\nlines"}\')',
    "endless": "import time; time.sleep(600)",
}


def stub(monkeypatch, folder: Path, name: str) -> None:
    """Let the gate run a script of ours instead of its child."""
    script = folder / "stub.py"
    script.write_text(STUBS[name])
    monkeypatch.setattr(gate_process, "_CHILD", script)


def job(folder: Path, count: int = 0, **changes) -> GateJob:
    values = {"original": None, "result": None, "samples": folder, "count": count, "threads": 1, "stages": ("compare",)}
    return GateJob(**{**values, **changes})


def test_a_crash_is_a_finding(tmp_path, monkeypatch):
    stub(monkeypatch, tmp_path, "crash")
    found = run_gate(job(tmp_path), tmp_path)
    assert found.failure == "the runtime crashed with signal 9"
    assert found.loaded, "it got as far as that"


def test_an_exit_code_is_a_finding(tmp_path, monkeypatch):
    stub(monkeypatch, tmp_path, "exit")
    assert run_gate(job(tmp_path), tmp_path).failure == "the runtime ended with exit code 9"


def test_a_model_that_never_ends_is_a_finding(tmp_path, monkeypatch):
    stub(monkeypatch, tmp_path, "endless")
    monkeypatch.setattr(gate_process, "TIMEOUT_S", 0.2)
    found = run_gate(job(tmp_path), tmp_path)
    assert "did not finish" in found.failure
    assert not found.loaded


def test_what_else_is_printed_does_not_disturb(tmp_path, monkeypatch):
    stub(monkeypatch, tmp_path, "noise")
    found = run_gate(job(tmp_path), tmp_path)
    assert "two" in found.failure
    assert "\n" not in found.failure


# -- the real child ---------------------------------------------------------------------------------------


def test_equal_models_compare_as_equal(tmp_path):
    proto = dense_net()
    model = save(proto, tmp_path)
    data = samples(start(proto).model, 3)
    count = write_samples(data, tmp_path)
    saved, optimized = tmp_path / "outputs.npz", tmp_path / "optimized.onnx"
    found = run_gate(
        job(tmp_path, count, original=model, result=model, save_outputs=saved, optimized=optimized), tmp_path
    )
    assert found.failure == ""
    assert found.loaded
    (output,) = found.outputs
    comparison = output_comparison(output, classes=True)
    assert comparison.sqnr_db is None
    assert comparison.cosine == pytest.approx(1.0)
    assert comparison.agreement == 1.0
    assert comparison.samples == count == 3
    assert optimized.exists()
    with np.load(saved) as archive:
        assert len(archive.files) == 6


def test_different_models_compare_as_different(tmp_path):
    first, second = dense_net(seed=0), dense_net(seed=1)
    data = samples(start(first).model, 4)
    count = write_samples(data, tmp_path)
    models = {"original": save(first, tmp_path, "a.onnx"), "result": save(second, tmp_path, "b.onnx")}
    (output,) = run_gate(job(tmp_path, count, **models), tmp_path).outputs
    from tests.compiling import outputs

    a = np.concatenate([outputs(first, data[i])[0] for i in range(4)]).astype(np.float64)
    b = np.concatenate([outputs(second, data[i])[0] for i in range(4)]).astype(np.float64)
    found = output_comparison(output, classes=True)
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2)), abs=1e-6)
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.cosine == pytest.approx(float(np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2))))
    assert found.agreement == float(np.mean(a.argmax(1) == b.argmax(1)))


def test_loading_is_measured_in_a_process_of_its_own(tmp_path):
    large = save(conv_net(channels=512, batch_norm=False), tmp_path, "large.onnx")
    small = save(dense_net(), tmp_path, "small.onnx")
    found = run_gate(job(tmp_path, original=large, result=small, stages=("loads",)), tmp_path)
    assert set(found.loads) == {"original", "result"}
    assert all(load.ms > 0 for load in found.loads.values())
    # The weights alone; no session before leaves memory that the next one finds.
    assert found.loads["original"].peak_bytes > large.stat().st_size
    assert found.loads["result"].peak_bytes < found.loads["original"].peak_bytes
    assert run_gate(job(tmp_path, original=large, result=small), tmp_path).loads == {}


def test_a_model_that_does_not_load_has_no_load_time(tmp_path):
    good, bad = save(dense_net(), tmp_path, "good.onnx"), tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    found = run_gate(job(tmp_path, original=good, result=bad, stages=("loads",)), tmp_path)
    assert set(found.loads) == {"original"}
    assert found.culprit == "result"


def test_every_stage_reports(tmp_path):
    proto = conv_net()
    model = save(proto, tmp_path)
    count = write_samples(samples(start(proto).model, 1), tmp_path)
    stages = ("compare", "latency", "profile")
    found = run_gate(job(tmp_path, count, original=model, result=model, stages=stages, latency_seconds=0.0), tmp_path)
    assert found.failure == ""
    assert len(found.blocks) >= 5
    assert set(found.nodes) == {"original", "result"}
    assert found.memory.keys() == found.seconds.keys() == {"original", "result"}
    origins = Origins(start(proto).model)
    timed = {node.name for row in found.nodes["original"] if (node := origins.find(row.name)) is not None}
    assert {"conv1", "dw", "pw", "fc"} <= timed


@pytest.mark.parametrize("kind", ["original", "result"])
def test_a_model_that_does_not_load_is_named(tmp_path, kind):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    models = {"original": save(dense_net(), tmp_path), "result": save(dense_net(), tmp_path, "r.onnx"), kind: broken}
    found = run_gate(job(tmp_path, **models), tmp_path)
    assert found.failure
    assert found.culprit == kind
    assert not found.loaded


# -- from sums to records ---------------------------------------------------------------------------------


def sums(**changes):
    values = {
        "name": "y",
        "signal": 100.0,
        "error": 1.0,
        "dot": 99.0,
        "own": 98.0,
        "max_abs": 0.5,
        "samples": 2,
        "same": False,
        "answers": [[1, 2], [1, 0]],
        "problem": "",
    }
    return {**values, **changes}


def test_sums_become_a_comparison():
    found = output_comparison(sums(), classes=True)
    assert isinstance(found, OutputComparison)
    assert found.sqnr_db == pytest.approx(20.0)
    assert found.agreement == 0.5
    assert output_comparison(sums(), classes=False).agreement is None
    assert output_comparison(sums(error=0.0), classes=False).sqnr_db is None


def test_outputs_that_are_no_numbers_are_equal_or_not():
    zero = {"signal": 0.0, "error": 0.0, "dot": 0.0, "own": 0.0}
    assert output_comparison(sums(**zero, same=True), classes=False).sqnr_db is None
    different = output_comparison(sums(**zero, same=False), classes=False)
    assert different.sqnr_db == -200.0
    assert different.cosine == 0.0


def test_latency_is_that_of_the_blocks():
    blocks = [[[2.0, 4.0], [1.0, 2.0]], [[3.0, 2.5], [1.5, 1.25]]]
    found = latency_comparison(blocks, warmup=2, threads=1)
    assert (found.original.min_ms, found.result.min_ms) == (2.0, 1.0)
    assert found.ratio_min == 0.5
    assert found.ratio_median == pytest.approx(np.median([1.0, 2.0, 1.5, 1.25]) / np.median([2.0, 4.0, 3.0, 2.5]))
    assert found.spread == pytest.approx(0.0)
    assert found.original.runs == found.result.runs == 4


def test_a_profile_states_what_was_measured():
    found = latency_profile([1.0, 2.0, 3.0, 4.0], warmup=2, threads=3)
    assert (found.min_ms, found.median_ms, found.runs, found.warmup, found.threads) == (1.0, 2.5, 4, 2, 3)
    assert found.p90_ms == pytest.approx(3.7)
    assert found.machine


def test_the_job_file_says_what_to_run(tmp_path, monkeypatch):
    stub(monkeypatch, tmp_path, "exit")
    run_gate(job(tmp_path, original=tmp_path / "a.onnx", stages=("outputs",)), tmp_path)
    document = json.loads((tmp_path / "job.json").read_text())
    assert document["original"].endswith("a.onnx")
    assert document["result"] is None
    assert document["stages"] == ["outputs"]
