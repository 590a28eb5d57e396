"""Files that a target wants beside ``model.onnx``; each is loaded and compared before it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qcompiler.errors import QCompileError

_CONVERT = """
import sys
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
options.optimized_model_filepath = sys.argv[2]
options.add_session_config_entry("session.save_model_format", "ORT")
options.add_session_config_entry("session.qdqisint8allowed", "1")
# NCHWc blocks are a layout of this machine, not of the target.
ort.InferenceSession(
    sys.argv[1], options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
)
"""


def write_artifact(name: str, model: Path) -> Path:
    """Write one file beside a compiled model and return its path.

    Args:
        name: "model.ort" is the only one there is.
        model: the written ``model.onnx``.

    Raises:
        QCompileError: nobody knows how to write it, or the runtime's converter failed.
    """
    if name != "model.ort":
        raise QCompileError(f"no writer for the file '{name}'")
    path = model.with_name(name)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CONVERT, str(model), str(path)], capture_output=True, check=False, text=True
    )
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise QCompileError(f"ONNX Runtime could not write {name}: {reason[:300]}")
    return path
