"""Graphs as text, compared with files under ``tests/golden``; ``QCOMPILER_UPDATE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx
import onnx_ir as ir

from qcompiler.model.save import to_proto

FOLDER = Path(__file__).resolve().parent / "golden"
UPDATE = "QCOMPILER_UPDATE_GOLDEN"
MAX_VALUES = 8


def text_of(model: ir.Model | onnx.ModelProto) -> str:
    """Return a model as text, long constants cut short."""
    proto = to_proto(model) if isinstance(model, ir.Model) else model
    text = onnx.printer.to_text(proto)
    text = re.sub(r"=\s+\{([^{}\n]*)\}", _shortened, text)
    text = re.sub(r"\}, (?=\w+(\[[\d,]*\])? )", "},\n    ", text)  # one constant a line
    return re.sub(r"\s+$", "", text, flags=re.MULTILINE) + "\n"


def _shortened(found: re.Match[str]) -> str:
    values = found[1].split(",")
    kept = values if len(values) <= MAX_VALUES else [*values[:3], f" ... {len(values)} values"]
    return "= {" + ",".join(kept) + "}"


def assert_golden(name: str, *models: ir.Model | onnx.ModelProto) -> None:
    """Check that models read as the golden file says, one after the other."""
    path = FOLDER / f"{name}.txt"
    text = "\n--- becomes ---\n\n".join(text_of(m) for m in models)
    if os.environ.get(UPDATE):
        path.write_text(text, encoding="ascii")
    assert path.exists(), f"{path} is missing; run with {UPDATE}=1 and read what it writes"
    assert text == path.read_text(encoding="ascii"), f"{path} differs; if that is right, run with {UPDATE}=1"
