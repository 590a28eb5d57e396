"""The child process that asks ONNX Runtime, and what happens when it crashes, hangs or says too much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.errors import ModelError, RuntimeUnavailable
from qcompiler.model import probe
from qcompiler.model.probe import RuntimeProbe, same_outputs, shorten
from tests import models


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a program that takes the child's place."""
    program = tmp_path / "child.py"
    monkeypatch.setattr(probe, "_CHILD", program)
    return program


def verdict(path: Path) -> str:
    with pytest.raises(ModelError) as caught, RuntimeProbe(path, 0) as running:
        running.verdict(17)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_crash(child: Path) -> None:
    child.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "it crashed (signal 11)" in verdict(Path("m.onnx"))


def test_out_of_memory(child: Path) -> None:
    child.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "perhaps for want of memory" in verdict(Path("m.onnx"))


def test_failure_to_start(child: Path) -> None:
    child.write_text("raise ImportError('no onnxruntime here')")
    wanted = r"does not start \(ImportError: no onnxruntime here\)"
    with pytest.raises(RuntimeUnavailable, match=wanted), RuntimeProbe(Path("m.onnx"), 0) as running:
        running.verdict(17)


def test_hang(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_LOAD_TIMEOUT_S", 0.2)
    child.write_text("import time; time.sleep(60)")
    assert "no answer within 0.2 s" in verdict(Path("m.onnx"))


def test_leaving_ends_the_child(child: Path) -> None:
    child.write_text("import time; time.sleep(60)")
    with RuntimeProbe(Path("m.onnx"), 0) as running:
        process = running._child
    assert process.returncode is not None


def test_noise_around_the_answer(child: Path) -> None:
    child.write_text("print('hello'); print('{\"ok\": true}')")
    with RuntimeProbe(Path("m.onnx"), 0) as running:
        running.verdict(17)


@pytest.mark.parametrize("total_bytes", [0, 2**30])
def test_both_ways_to_load(tmp_path: Path, total_bytes: int) -> None:
    path = models.save(models.dense_net(), tmp_path)
    with RuntimeProbe(path, total_bytes) as running:
        running.verdict(17)
    path = models.save(models.dense_net(opset=99), tmp_path, "new.onnx")
    with pytest.raises(ModelError, match="opset 99 is newer"), RuntimeProbe(path, total_bytes) as running:
        running.verdict(99)


def test_same_outputs(tmp_path: Path) -> None:
    first = models.save(models.conv_net(), tmp_path, "first.onnx")
    plain = models.save(models.conv_net(batch_norm=False), tmp_path, "plain.onnx")
    wrong = models.save(models.dense_net(), tmp_path, "wrong.onnx")
    assert same_outputs(first, first, 1e-6) == ""
    assert same_outputs(first, plain, 1e-6) == "output 'scores' differs"
    assert same_outputs(first, wrong, 1e-6) != ""
    assert same_outputs(tmp_path / "missing.onnx", first, 1e-6) != ""


@pytest.mark.parametrize("branch", [0, 1])
def test_same_outputs_sees_both_branches(tmp_path: Path, branch: int) -> None:
    first = models.save(models.branch_net(), tmp_path, "first.onnx")
    changed = models.branch_net()
    changed.graph.node[0].attribute[branch].g.node[1].op_type = "Sub"
    second = models.save(changed, tmp_path, "second.onnx")
    assert same_outputs(first, second, 1e-6) == "output 'y' differs"


def test_same_outputs_compares_integers_lists_and_nan(tmp_path: Path) -> None:
    nodes = [
        models.helper.make_node("Log", ["x"], ["a"]),
        models.helper.make_node("SequenceConstruct", ["x", "a"], ["s"]),
        models.helper.make_node("ArgMax", ["x"], ["i"], axis=1),
        models.helper.make_node("ArgMin", ["x"], ["j"], axis=1),
    ]
    x = ("x", models.FLOAT, [2, 4])
    for output, other in (("i", "j"), ("s", "s")):
        paths = []
        for name in (output, other):
            model = models.build(nodes, [x], [])
            if name == "s":
                model.graph.output.append(models.helper.make_tensor_sequence_value_info("s", models.FLOAT, None))
            else:
                info = models.helper.make_tensor_value_info(name, models.TensorProto.INT64, [1, 4])
                model.graph.output.append(info)
            paths.append(models.save(model, tmp_path, f"{name}.onnx"))
        assert (same_outputs(*paths, 1e-6) == "") == (output == other)


def test_shorten_keeps_what_says_something() -> None:
    long = (
        "[ONNXRuntimeError] : 1 : FAIL : Load model from /a/b.onnx failed:/onnxruntime_src/core/model.cc:256 "
        "onnxruntime::Model::Model(onnx::ModelProto&&, const std::string&) Something\nis wrong."
    )
    assert shorten(long) == "Something is wrong"
    assert len(shorten("x" * 1000)) == 240


def test_child_starts_without_this_package() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({str(probe._CHILD)!r}, run_name='child'); "
        "sys.exit(any(m.startswith('qcompiler') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
