"""qcompiler: a compression compiler for ONNX models that proves its own output."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompiler.compiler import CompileResult, compile_model
    from qcompiler.graphsurgeon import GraphSurgeonPass
    from qcompiler.plan import CompressionPlan
    from qcompiler.protocols import Pass, Target
    from qcompiler.recipe import Recipe
    from qcompiler.report.document import load_report

__version__ = "0.1.0"

# ONNX Runtime's wheels may report usage from a thread of their own: not from here, and not into a measurement.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "CompileResult": "qcompiler.compiler",
    "CompressionPlan": "qcompiler.plan",
    "GraphSurgeonPass": "qcompiler.graphsurgeon",
    "Pass": "qcompiler.protocols",
    "Recipe": "qcompiler.recipe",
    "Target": "qcompiler.protocols",
    "compile_model": "qcompiler.compiler",
    "load_report": "qcompiler.report.document",
}

__all__ = [
    "CompileResult",
    "CompressionPlan",
    "GraphSurgeonPass",
    "Pass",
    "Recipe",
    "Target",
    "compile_model",
    "load_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import a public name when it is first used, so that ``qcompile --help`` imports none of them."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qcompiler' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
