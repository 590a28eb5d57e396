"""Files that a target wants beside ``model.onnx``; the gate loads each that runs and compares it before it counts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import ModelError, QCompileError

_RUNTIME = Path(__file__).with_name("runtime")


@dataclass(frozen=True, slots=True)
class Writer:
    """How a file is written: by a script in ``runtime/``, from a file beside it; whose words a failure is told in."""

    script: str
    source: str
    speaker: str


WRITERS = {
    "model.ort": Writer("_convert_child.py", "model.onnx", "ONNX Runtime"),
    "model.required_operators.config": Writer("_operators_child.py", "model.ort", "ONNX Runtime"),
    "model_ctx.onnx": Writer("_qnn_sessions.py", "model.onnx", "the QNN provider"),
}
"""Every file that a target may ask for; one that is made from another comes after it."""


def write_artifact(name: str, model: Path) -> Path:
    """Write one file beside a compiled model and return its path.

    Args:
        name: one of ``WRITERS``.
        model: the written ``model.onnx``.

    Raises:
        QCompileError: nobody knows how to write it, or the runtime's tool failed.
        ModelError: the target's provider refuses the model.
    """
    if name not in WRITERS:
        raise QCompileError(f"no writer for the file '{name}'; a target may ask for {', '.join(WRITERS)}")
    writer = WRITERS[name]
    path = model.with_name(name)
    path.unlink(missing_ok=True)  # of a result that repair has changed since; the QNN provider overwrites none
    command = [sys.executable, "-P", str(_RUNTIME / writer.script), str(model.with_name(writer.source)), str(path)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        refused = ModelError if name == "model_ctx.onnx" else QCompileError
        raise refused(f"{writer.speaker} could not write {name}: {reason[:300]}")
    return path
