"""Files that a target wants beside ``model.onnx``; the gate loads each that runs and compares it before it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qcompiler.errors import QCompileError

_RUNTIME = Path(__file__).with_name("runtime")
_WRITERS = {
    "model.ort": ("_convert_child.py", "model.onnx"),
    "model.required_operators.config": ("_operators_child.py", "model.ort"),
}
"""File -> the script that writes it, and the file beside it that it is made from."""


def write_artifact(name: str, model: Path) -> Path:
    """Write one file beside a compiled model and return its path.

    Args:
        name: "model.ort", or "model.required_operators.config", which is made from it and comes after it.
        model: the written ``model.onnx``.

    Raises:
        QCompileError: nobody knows how to write it, or the runtime's tool failed.
    """
    if name not in _WRITERS:
        raise QCompileError(f"no writer for the file '{name}'; a target may ask for {', '.join(_WRITERS)}")
    script, source = _WRITERS[name]
    path = model.with_name(name)
    command = [sys.executable, "-P", str(_RUNTIME / script), str(model.with_name(source)), str(path)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise QCompileError(f"ONNX Runtime could not write {name}: {reason[:300]}")
    return path
