"""What machine this is, in words for the report."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def machine_name() -> str:
    """Return processor model, architecture, number of processors and operating system."""
    model = platform.processor() or "unknown processor"
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}"


def architecture() -> str:
    """Return the name of this machine's architecture as people write it, such as ``x86-64``."""
    names = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "ARM64", "arm64": "ARM64"}
    return names.get(platform.machine().lower(), platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("qcompiler", "onnx", "onnxruntime", "onnx-ir", "onnxscript", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
