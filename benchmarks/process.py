"""Runs a command in a fresh process and measures its wall seconds and the peak memory of its largest process.

Run as a script this file is the launcher that ``run_measured`` puts between itself and the command. It is
needed because Linux counts a parent's memory into the peak of a child it starts (the peak is taken over at
``exec``): a command started by a process of 2 GB would seem to need 2 GB. The launcher imports the standard
library only.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

_OUTPUT_TAIL = 4000


@dataclass(frozen=True, slots=True)
class Measured:
    """One finished command.

    Attributes:
        exit_code: what it returned; negative if a signal ended it.
        wall_seconds: from start to end, the imports of its interpreter included.
        peak_bytes: largest resident set of any single process among it and the descendants it waited for.
        output: the end of what it printed.
    """

    exit_code: int
    wall_seconds: float
    peak_bytes: int
    output: str

    @property
    def failure(self) -> str:
        """Return the exit code with the last line printed."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"exit {self.exit_code}: {lines[-1]}" if lines else f"exit {self.exit_code}"


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A tool's run on one model.

    Attributes:
        name: the tool and its setting, for the tables.
        model: the file it wrote, or None if it wrote none that can be scored.
        measured: what the run cost.
        notes: what was done to the model beforehand, or why it failed.
        accepted: False if the tool itself refused what it wrote.
    """

    name: str
    model: Path | None
    measured: Measured
    notes: str = ""
    accepted: bool = True


def run_measured(command: list[str], folder: Path, memory_limit_bytes: int | None = None) -> Measured:
    """Run a command to its end and return what it cost.

    Args:
        command: program and arguments; Python finds the packages of this checkout, installed or not.
        folder: the working folder, where a tool may leave its logs.
        memory_limit_bytes: limit of its address space, so that a greedy tool fails by itself instead of
            driving the machine out of memory; None for no limit.
    """
    with tempfile.TemporaryDirectory(prefix="measured-") as scratch:
        figures = Path(scratch) / "figures.json"
        launcher = [sys.executable, "-I", __file__, str(figures), str(memory_limit_bytes or 0)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run([*launcher, *command], cwd=folder, env=environment, check=True)
        return Measured(**json.loads(figures.read_text(encoding="utf-8")))


def _launch(figures: Path, memory_limit_bytes: int, command: list[str]) -> None:
    def limit_memory() -> None:
        if memory_limit_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))

    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=limit_memory)
        # wait4 counts the descendants that the command waited for, and its peak is that of the largest one.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read().decode("utf-8", errors="replace")
    measured = {
        "exit_code": child.returncode,
        "wall_seconds": seconds,
        "peak_bytes": usage.ru_maxrss * 1024,  # Linux counts in KiB
        "output": printed[-_OUTPUT_TAIL:],
    }
    figures.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    _launch(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
