"""This machine, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import UsageError
from qcompiler.runtime.devices.bundle import RUNNER, Bundle, Outcome


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """Runs the runner with this Python; models are read where they are."""

    name: str = "local"
    is_here: bool = True

    @classmethod
    def parse(cls, text: str) -> LocalDevice:
        """Return the device.

        Raises:
            UsageError: there is something behind ``local``.
        """
        if text != "local":
            raise UsageError(f"device '{text}' is not known; this machine is just 'local'")
        return cls()

    def run(self, bundle: Bundle) -> Outcome:
        """Run the runner in a new process."""
        return run_here((sys.executable, "-P"), bundle)


def run_here(command: tuple[str, ...], bundle: Bundle) -> Outcome:
    """Run the runner on this machine by a command that takes a Python script, and return how it ended."""
    with tempfile.TemporaryDirectory(prefix="qcompile-device-") as folder:
        bundle.write_in_place(Path(folder))
        done = subprocess.run(
            [*command, str(RUNNER), folder],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    return Outcome(output=done.stdout, errors=done.stderr, code=done.returncode)
