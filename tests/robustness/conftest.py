"""Runs the real command line, with the real child processes, in an empty folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompiler.cli import main


@dataclasses.dataclass(frozen=True)
class Ended:
    """Exit code, what was printed, and the folder it ran in."""

    code: int
    out: str
    err: str
    folder: Path

    def refused(self, code: int, *words: str) -> str:
        """Check that it ended in one line with this exit code and these words, and return the line."""
        assert self.code == code, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        assert list(self.folder.glob("qcompile-error-*")) == []
        for word in words:
            assert word in lines[0], f"{word!r} is not in: {lines[0]}"
        return lines[0]


Command = Callable[..., Ended]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that runs ``qcompile`` in an empty folder, into ``out`` unless told otherwise."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: Any, target: str = "reference") -> Ended:
        place = () if "-o" in arguments else ("-o", folder / "out")
        code = main([str(a) for a in (*arguments, *place, "--target", target)])
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err, folder)

    return run
