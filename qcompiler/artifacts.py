"""Files that a target wants beside ``model.onnx``; the gate loads each and compares it before it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qcompiler.errors import ModelError, QCompileError

WRITERS = {
    "model.ort": ("_convert_child.py", "ONNX Runtime"),
    "model_ctx.onnx": ("_qnn_sessions.py", "the QNN provider"),
}
"""File -> the script in ``runtime/`` that writes it, and whose words a failure is told in."""


def write_artifact(name: str, model: Path) -> Path:
    """Write one file beside a compiled model and return its path.

    Args:
        name: one of ``WRITERS``.
        model: the written ``model.onnx``.

    Raises:
        QCompileError: nobody knows how to write it, or ONNX Runtime's converter failed.
        ModelError: the target's provider refuses the model.
    """
    if name not in WRITERS:
        raise QCompileError(f"no writer for the file '{name}'; a target may ask for {', '.join(WRITERS)}")
    script, writer = WRITERS[name]
    path = model.with_name(name)
    command = [sys.executable, "-P", str(Path(__file__).with_name("runtime") / script), str(model), str(path)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        refused = QCompileError if name == "model.ort" else ModelError
        raise refused(f"{writer} could not write {name}: {reason[:300]}")
    return path
