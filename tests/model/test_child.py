"""Scripts in processes of their own, and the one way to run them elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qcompiler.model.child import launched_by, start_child, stop_child
from tests.robustness.in_process import run_here


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text("import os, sys\nprint(os.getpid(), *sys.argv[1:])\nprint('oh', file=sys.stderr)\nsys.exit(3)\n")
    return path


def test_a_script_runs_in_a_process_of_its_own(script: Path) -> None:
    child = start_child(script, "caf\u00e9 {}")
    output, complaint = child.communicate(timeout=60)
    process, argument = output.strip().split(" ", 1)
    assert argument == "caf\u00e9 {}"
    assert complaint == "oh\n"
    assert child.returncode == 3
    assert not Path(f"/proc/{process}").exists()


def test_a_script_cannot_wait_for_the_terminal(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("input()")
    _, complaint = start_child(script, "").communicate(timeout=60)
    assert "EOFError" in complaint


def test_stop_ends_what_runs_and_leaves_alone_what_ended(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(600)")
    child = start_child(script, "")
    with pytest.raises(subprocess.TimeoutExpired):
        child.communicate(timeout=0.01)
    stop_child(child)
    assert child.returncode == -9
    stop_child(child)


def test_another_launcher_counts_within_its_block_only(script: Path) -> None:
    started = []
    with launched_by(lambda path, argument: started.append((path, argument)) or run_here(path, argument)):
        child = start_child(script, "x")
    assert started == [(script, "x")]
    assert child.communicate()[1] == "oh\n"
    assert child.poll() == 3
    stop_child(start_child(script, "y"))
    assert len(started) == 1
