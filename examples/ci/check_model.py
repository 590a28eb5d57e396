"""Compile a model in a pipeline, and fail if it lost too much: what the command line does, from Python.

``python check_model.py MODEL.onnx SAMPLES.npz LABELS.npy SUMMARY.md`` ends with qcompile's exit codes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from qcompiler import CompileResult, Recipe, compile_model
from qcompiler.errors import FloorMissed, QCompileError
from qcompiler.recipe import Floors
from qcompiler.report.summary import write_summary

FLOORS = Floors(max_drop=1.0, max_size_bytes=40_000)
"""At most one point of top-1 lost, and a file of at most 40 kB."""


def check(model: Path, data: Path, labels: Path, summary: Path) -> int:
    """Compile a model for two targets, write the summary page, and return the exit code."""
    recipe = Recipe(targets=("arm", "x86"), data=str(data), labels=str(labels), floors=FLOORS, require_data=True)
    results: Sequence[CompileResult]
    try:
        results, code = compile_model(model, recipe=recipe, out=summary.parent / "compiled", force=True), 0
    except FloorMissed as error:
        print(f"floor missed: {error}", file=sys.stderr)
        results, code = error.results, error.exit_code
    except QCompileError as error:
        print(f"not compiled: {error}", file=sys.stderr)
        return error.exit_code
    write_summary([result.report for result in results], summary)
    for result in results:
        print(f"{result.target}: {result.folder}")
    return code


def main() -> int:
    """Check the model that the command line names."""
    if len(sys.argv) != 5:
        print("usage: check_model.py MODEL.onnx SAMPLES.npz LABELS.npy SUMMARY.md", file=sys.stderr)
        return 2
    model, data, labels, summary = (Path(argument) for argument in sys.argv[1:])
    return check(model, data, labels, summary)


if __name__ == "__main__":
    sys.exit(main())
