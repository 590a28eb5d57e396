"""Converts ``MODEL.onnx`` to ``MODEL.ort`` for ARM, the same bytes every time; a process of its own.

Usage: ``python _convert_child.py MODEL.onnx MODEL.ort``. It imports nothing of this package.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_NO_RANDOM_ADDRESSES = 0x0040000
_AGAIN = "QCOMPILER_FIXED_ADDRESSES"


def fix_addresses() -> None:
    """Start this process again without address randomization, where the system lets us.

    ONNX Runtime writes some lists in the order of hash tables, and those are seeded with an address.
    """
    if platform.system() != "Linux" or os.environ.get(_AGAIN):
        return
    if ctypes.CDLL(None).personality(_NO_RANDOM_ADDRESSES) == -1:
        return
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], {**os.environ, _AGAIN: "1"})


def main() -> None:
    """Convert."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = sys.argv[2]
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    # NCHWc blocks are a layout of this machine, not of the target.
    ort.InferenceSession(
        sys.argv[1], options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )


if __name__ == "__main__":
    fix_addresses()
    main()
