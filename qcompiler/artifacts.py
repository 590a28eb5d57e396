"""Files that a target wants beside ``model.onnx``; the gate loads each and compares it before it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qcompiler.errors import QCompileError

_CHILD = Path(__file__).with_name("runtime") / "_convert_child.py"


def write_artifact(name: str, model: Path) -> Path:
    """Write one file beside a compiled model and return its path.

    Args:
        name: "model.ort" is the only one there is.
        model: the written ``model.onnx``.

    Raises:
        QCompileError: nobody knows how to write it, or the runtime's converter failed.
    """
    if name != "model.ort":
        raise QCompileError(f"no writer for the file '{name}'; a target may ask for model.ort")
    path = model.with_name(name)
    command = [sys.executable, "-P", str(_CHILD), str(model), str(path)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise QCompileError(f"ONNX Runtime could not write {name}: {reason[:300]}")
    return path
