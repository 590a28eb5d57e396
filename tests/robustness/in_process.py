"""Runs the scripts that normally get a process of their own in this one: thousands of operators in minutes."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from unittest import mock

from qcompiler.model.child import launched_by


@dataclass(frozen=True)
class Finished:
    """A script that ran to its end before it was asked for anything."""

    returncode: int
    output: str
    complaint: str

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        return self.output, self.complaint

    def poll(self) -> int:
        return self.returncode

    def kill(self) -> None:
        pass


@functools.cache
def _code(script: Path) -> CodeType:
    return compile(script.read_text(encoding="utf-8"), str(script), "exec")


def run_here(script: Path, argument: str) -> Finished:
    """Run a script as a new process would, with its own ``__main__`` and arguments, and catch what it prints."""
    output, complaint, code = io.StringIO(), io.StringIO(), 0
    arguments = sys.argv
    sys.argv = [str(script), argument]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(complaint):
            exec(_code(script), {"__name__": "__main__", "__file__": str(script)})
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:
        complaint.write(traceback.format_exc())
        code = 1
    finally:
        sys.argv = arguments
    return Finished(code, output.getvalue(), complaint.getvalue())


@contextlib.contextmanager
def without_processes() -> Iterator[None]:
    """Run the scripts of this package here within a block; what loading costs is then not measured.

    It is measured in copies of the process, and copying one that has held thousands of models takes longer than
    the rest of a case.
    """
    with launched_by(run_here), mock.patch.object(os, "fork"):
        del os.fork
        yield
