"""What ends up on disk when a run does not end well: nothing of it, and everything that was there before."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.errors import RuntimeUnavailable
from qcompiler.flow import attempt
from qcompiler.model import save
from qcompiler.runtime import gate_process
from qcompiler.targets import TARGETS
from qcompiler.targets.reference import Reference
from tests import models
from tests.robustness.conftest import Command, Ended

DEADLINE_S = 60.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(models.dense_net(width=64), tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- existing, unwritable and full places ------------------------------------------------------------


def test_existing_output(command: Command, model: Path) -> None:
    assert command(model).code == 0
    before = content(model.parent / "work")
    command(model).refused(7, "exists", "--force")
    assert content(model.parent / "work") == before
    assert command(model, "--force").code == 0


def test_folder_that_is_no_result(command: Command, model: Path) -> None:
    folder = model.parent / "work" / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    command(model, "--force").refused(7, "is not a qcompile result", "choose another folder")
    assert content(folder) == {"thesis.txt": b"precious"}


def test_output_that_is_a_file(command: Command, model: Path) -> None:
    (model.parent / "work" / "out").write_text("precious")
    command(model, "--force").refused(7, "is a file", "choose another folder")


def test_unwritable_place(command: Command, model: Path) -> None:
    file = model.parent / "file"
    file.write_text("no folder")
    command(model, "-o", file / "out").refused(7, "cannot be written", "choose another folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(command: Command, model: Path) -> None:
    work = model.parent / "work"
    work.chmod(0o555)
    command(model).refused(7, "Permission denied", "choose another folder")


@pytest.mark.parametrize("forced", [False, True])
def test_full_disk(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    if forced:
        assert command(model).code == 0
    before = content(model.parent / "work")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(save, "_write_one_file", full)
    command(model, *(["--force"] if forced else [])).refused(7, "No space left on device")
    assert content(model.parent / "work") == before


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))


def test_file_system_that_takes_no_more(model: Path, tmp_path: Path) -> None:
    """The operating system itself refuses: files may not grow beyond 8 kB."""
    folder = tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(
        qcompile(model), cwd=folder, preexec_fn=limit_file_size, capture_output=True, text=True, check=False
    )
    Ended(done.returncode, done.stdout, done.stderr, folder).refused(7, "File too large")
    assert list(folder.iterdir()) == []


# -- floors and runtimes -----------------------------------------------------------------------------


@pytest.mark.parametrize("forced", [False, True])
def test_floor_that_cannot_be_met(command: Command, model: Path, forced: bool) -> None:
    work = model.parent / "work"
    np.save(model.parent / "x.npy", np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32))
    if forced:
        assert command(model).code == 0
    before = content(work)
    words = ["--data", model.parent / "x.npy", "--min-sqnr", "500", *(["--force"] if forced else [])]
    command(model, *words).refused(4, "SQNR of 'y'", "at least 500", "out.failed")
    left = content(work)
    assert {k: v for k, v in left.items() if not k.startswith("out.failed")} == before
    report = json.loads(left["out.failed/report.json"])
    assert any(f["held"] is False for f in report["verdict"]["floors"])
    assert left["out.failed/report.html"].startswith(b"<!DOCTYPE html>")
    onnx.checker.check_model(left["out.failed/model.onnx"])


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def test_runtime_that_crashes(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the child process is a finding, and the rejected model is kept with its report."""
    script = model.parent / "child.py"
    script.write_text(CRASH)
    monkeypatch.setattr(gate_process, "_CHILD", script)
    ended = command(model)
    ended.refused(4, "crashed with signal 11", "out.failed")
    left = content(ended.folder)
    assert {name.partition("/")[0] for name in left} == {"out.failed"}
    report = json.loads(left["out.failed/report.json"])
    assert "signal 11" in report["verdict"]["failure"]
    assert left["out.failed/report.html"]
    assert left["out.failed/model.onnx"]


def test_result_that_does_not_load(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(lowered: Any, path: Path) -> tuple[Path, ...]:
        path.write_bytes(b"nonsense")
        return (path,)

    monkeypatch.setattr(attempt, "save_model", broken)
    ended = command(model)
    ended.refused(4, "out.failed")
    report = json.loads((ended.folder / "out.failed" / "report.json").read_text())
    assert report["verdict"]["loaded"] is False
    assert not (ended.folder / "out").exists()


class Unavailable(Reference):
    """A target whose runtime is not installed."""

    name: ClassVar[str] = "unavailable"

    def rules(self) -> Any:
        raise RuntimeUnavailable("target 'unavailable' needs the engine 'fast'; install it with pip")

    def legalize(self, *arguments: Any) -> Any:
        return self.rules()


def test_target_whose_runtime_is_missing(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "unavailable", f"{__name__}:Unavailable")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    ended = command(model, target="unavailable")
    ended.refused(6, "needs the engine 'fast'", "install it")
    assert list(ended.folder.iterdir()) == []


# -- interrupts --------------------------------------------------------------------------------------


def qcompile(model: Path, *words: Any) -> list[str]:
    command = [sys.executable, "-m", "qcompiler", model, "--target", "reference", "-o", "out", *words]
    return [str(word) for word in command]


def reading(path: Path) -> bytes:
    """Return the command line of a process, which may just have ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def interrupted(command: list[str], folder: Path, ready: Any) -> Ended:
    """Run a command, interrupt it once ``ready()`` is true, and return how it ended."""
    scratch = folder.parent / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    child = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not ready() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert child.poll() is None, child.communicate()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=DEADLINE_S)
    finally:
        child.kill()
    assert list(scratch.glob("qcompile-*")) == [], "temporary files are left"
    assert [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(scratch).encode() in reading(p)] == []
    return Ended(child.returncode, out, err, folder)


LOADER = """
import time
from pathlib import Path

import numpy as np

def samples():
    Path("started").touch()
    time.sleep(600)

def metric(outputs, labels):
    samples()
"""


@pytest.fixture
def work(model: Path) -> Path:
    """A folder with a previous result and a loader that takes its time."""
    folder = model.parent / "work"
    folder.mkdir()
    (folder / "patient.py").write_text(LOADER)
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32))
    subprocess.run(qcompile(model), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("words", [["--data", "patient:samples"], ["--data", "x.npy", "--metric", "patient:metric"]])
def test_interrupt(model: Path, work: Path, words: list[str]) -> None:
    """Ctrl-C while data is read, and while a model that is already written is verified."""
    before = content(work / "out")
    ended = interrupted(qcompile(model, "--force", *words), work, (work / "started").exists)
    assert ended.refused(130) == "error: interrupted"
    assert content(work / "out") == before
    assert sorted(p.name for p in work.iterdir() if p.name.startswith("out")) == ["out"]


def endless() -> onnx.ModelProto:
    """A model that loads at once and runs for hours: the gate's child process is where it spins."""
    body = helper.make_graph(
        [
            helper.make_node("Tanh", ["in"], ["out"], name="tanh"),
            helper.make_node("Identity", ["go"], ["on"], name="go"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("in", models.FLOAT, [4, 64]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("out", models.FLOAT, [4, 64]),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Loop", ["count", "yes", "m"], ["y"], name="loop", body=body),
    ]
    constants = {
        "w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32),
        "count": np.asarray(10**12, np.int64),
        "yes": np.asarray(True),
    }
    return models.build(nodes, [("x", models.FLOAT, [4, 64])], [("y", models.FLOAT, [4, 64])], constants)


def test_interrupt_while_the_child_runs(tmp_path: Path) -> None:
    path, work = models.save(endless(), tmp_path), tmp_path / "work"
    work.mkdir()

    def child_has_its_job() -> bool:
        return bool(list(tmp_path.glob("scratch/qcompile-gate-*/job.json")))

    ended = interrupted(qcompile(path), work, child_has_its_job)
    assert ended.refused(130) == "error: interrupted"
    assert list(work.iterdir()) == []
