"""Devices behind a command that runs another there: everything goes through its stdin, the answer comes back."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from urllib.parse import parse_qs

from qcompiler.errors import OutputError, RuntimeUnavailable, UsageError
from qcompiler.runtime.devices.bundle import LIMIT_S, Bundle, Outcome

PYTHON = "python3"
_MARGIN_S = 600


def run_remote(command: Sequence[str], python: str, bundle: Bundle) -> Outcome:
    """Send a bundle through a command and return how the run ended.

    Args:
        command: a program and its arguments; the command line for the device's shell comes behind them.
        python: the interpreter on the device.
        bundle: what to measure.

    Raises:
        RuntimeUnavailable: the program is not installed here, or nothing came back in time.
        OutputError: there is no room here for what is sent.
    """
    try:
        with tempfile.TemporaryFile(prefix="qcompile-device-") as file:
            size = bundle.write_stream(file)
            file.seek(0)
            start = f"exec {shlex.quote(python)} -c 'import sys;exec(sys.stdin.buffer.read({size}))'"
            return run_program([*command, start], timeout=LIMIT_S + _MARGIN_S, stdin=file.fileno())
    except OSError as error:
        raise OutputError(f"the temporary folder of this machine refused: {error.strerror or error}") from error


def run_program(command: Sequence[str], *, timeout: float, stdin: int = subprocess.DEVNULL) -> Outcome:
    """Run a program of this machine and return how it ended.

    Raises:
        RuntimeUnavailable: it is not installed, or does not end in ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            command,
            stdin=stdin,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise RuntimeUnavailable(f"the program '{command[0]}' is not installed on this machine; install it") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(f"'{command[0]}' did not end within {timeout:.0f} s; check the device") from error
    return Outcome(output=done.stdout, errors=done.stderr, code=done.returncode)


def python_of(query: str, device: str) -> str:
    """Return the interpreter that the end of a device's name asks for, as in ``?python=/opt/venv/bin/python``.

    Raises:
        UsageError: it asks for anything else.
    """
    if not query:
        return PYTHON
    found = parse_qs(query)
    if set(found) != {"python"} or len(found["python"]) != 1:
        raise UsageError(f"device '{device}' ends in '?{query}'; only ?python=PATH is known there")
    return found["python"][0]
