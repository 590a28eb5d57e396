"""Runs ``qcompile`` the way a user does: its command line, in a fresh process."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.process import ToolRun, run_measured

WITH_DATA = "qcompile"
NO_DATA = "qcompile, no data"
PLACED = "qcompile -O2"
NAMES = (WITH_DATA, NO_DATA, PLACED)


def run_qcompile(model: Path, calibration: Path | None, folder: Path, effort: int = 1) -> ToolRun:
    """Compile a model for x86.

    A result that the compiler's own gate refuses is scored all the same, from where the compiler leaves it,
    but counts as not accepted.

    Args:
        model: the float model.
        calibration: .npz of arrays by input name, samples first; None compiles without data.
        folder: where to write; the compiler's latency database is kept there too, so it starts empty.
        effort: 1, or 2 for placement by measured latency.
    """
    name = NO_DATA if calibration is None else PLACED if effort > 1 else WITH_DATA
    output = folder / name.replace(", ", "_").replace(" ", "_")
    data = [] if calibration is None else ["--data", str(calibration)]
    return _compiled(name, [str(model), "--target", "x86", f"-O{effort}", *data], output)


def compile_for_board(board: str, model: Path, calibration: Path, folder: Path, effort: int) -> ToolRun:
    """Compile a model for an ARM board; what the compiler's gate refuses counts as in ``run_qcompile``.

    Args:
        board: profile of the ``arm`` target.
        model: the float model.
        calibration: .npz of arrays by input name, samples first.
        folder: where to write.
        effort: 1, or 2 for placement by instructions on the emulated board.
    """
    words = [str(model), "--target", f"arm:{board}", f"-O{effort}", "--data", str(calibration)]
    words += ["--verify", "emulate"] if effort > 1 else []
    return _compiled(f"qcompile -O{effort}", words, folder / f"{board}-O{effort}")


def run_with_words(name: str, model: Path, calibration: Path | None, words: list[str], output: Path) -> ToolRun:
    """Compile a model with given options; what the compiler's gate refuses counts as in ``run_qcompile``.

    Args:
        name: of the run, for the tables.
        model: the float model.
        calibration: .npz of arrays by input name, samples first; None compiles without data.
        words: options of the command line.
        output: the folder to write.
    """
    data = [] if calibration is None else ["--data", str(calibration)]
    return _compiled(name, [str(model), *data, *words], output)


def _compiled(name: str, words: list[str], output: Path) -> ToolRun:
    """Return the run of the command line on some words."""
    command = [sys.executable, "-m", "qcompiler", *words, "-o", str(output), "--force"]
    measured = run_measured(command, output.parent)
    written = output / "model.onnx"
    if measured.exit_code == 0 and written.is_file():
        return ToolRun(name, written, measured)
    refused = output.with_name(f"{output.name}.failed") / "model.onnx"
    if refused.is_file():
        return ToolRun(name, refused, measured, f"refused, {measured.failure}", accepted=False)
    return ToolRun(name, None, measured, f"failed, {measured.failure}", accepted=False)
