"""How a compilation ended: the exit code and the one line that the command would print."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.compiler import CompileResult, compile_model
from qcompiler.errors import QCompileError
from qcompiler.recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """Exit code, message ("" for 0) and results."""

    code: int
    line: str
    results: tuple[CompileResult, ...] = ()


def compile_to(model: Path, out: Path, **recipe: Any) -> Outcome:
    """Compile a model and return how that ended; whatever is no error of this package goes on as it is."""
    shutil.rmtree(out, ignore_errors=True)
    try:
        results = compile_model(model, recipe=Recipe(**recipe), out=out, force=True)
    except QCompileError as error:
        return Outcome(error.exit_code, str(error), tuple(getattr(error, "results", ())))
    return Outcome(0, "", results)


def problem(outcome: Outcome, allowed: frozenset[int]) -> str:
    """Return what is wrong with how a compilation ended, "" if nothing is."""
    if outcome.code not in allowed:
        return f"exit code {outcome.code}: {outcome.line}"
    if outcome.code and ("\n" in outcome.line or ";" not in outcome.line):
        return f"the line does not say what, where and what to do: {outcome.line!r}"
    if outcome.code == 0 and not all(r.report.verdict.held for r in outcome.results):
        return "a result that does not hold ended in 0"
    return ""
