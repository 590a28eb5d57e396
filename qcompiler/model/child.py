"""Running stand-alone scripts of this package in processes of their own, where a crash is a finding, not ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

OWN_GROUP = 0 if os.name == "posix" else None
"""For ``subprocess``: Ctrl-C in a terminal reaches every process of our group, and ends those that were not asked."""


class Child(Protocol):
    """A script that was started: the part of ``subprocess.Popen[str]`` that its parents use."""

    @property
    def returncode(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        ...

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: it goes on for longer than ``timeout`` seconds.
        """
        ...

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


Launcher = Callable[[Path, str], Child]
"""Starts a script with one argument."""


def new_process(script: Path, argument: str) -> Child:
    """Start a script in a new Python process, which does not see this one's folder or imports."""
    command = [sys.executable, "-P", str(script), argument]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        process_group=OWN_GROUP,
    )


_launcher: ContextVar[Launcher] = ContextVar("launcher", default=new_process)


@contextmanager
def launched_by(launcher: Launcher) -> Iterator[None]:
    """Start scripts in another way within a block.

    A process of its own is what keeps a crash of the runtime away from the compiler, at a quarter of a second
    each; whoever compiles thousands of trusted models, as a test of every operator does, may do without.
    """
    token = _launcher.set(launcher)
    try:
        yield
    finally:
        _launcher.reset(token)


def start_child(script: Path, argument: str) -> Child:
    """Start a script with one argument: in a new process, unless ``launched_by`` says otherwise."""
    return _launcher.get()(script, argument)


def stop_child(child: Child) -> None:
    """End a child that still runs, and take what it left in its pipes."""
    if child.poll() is None:
        child.kill()
    child.communicate()
