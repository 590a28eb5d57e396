"""What the suite has measured on one model, and what the goals are counted from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.compiler import NAMES, WITH_DATA
from benchmarks.models import BenchmarkModel
from benchmarks.process import ToolRun
from benchmarks.readers import Arrays
from benchmarks.scoring import Score, incompatibility

_NOISE = 1.02


@dataclass(frozen=True, slots=True)
class Entry:
    """One tool's run on one model, and the score of what it wrote; None where there is nothing to score."""

    run: ToolRun
    score: Score | None


@dataclass(frozen=True, slots=True)
class ModelResult:
    """All that was measured on one model.

    Attributes:
        model: which one.
        original: score of the float model, whose latency ratio is 1.
        entries: the contenders first, then the compiler with data and, for some models, without.
    """

    model: BenchmarkModel
    original: Score
    entries: Sequence[Entry]

    def entry(self, name: str) -> Entry | None:
        """Return the entry of a tool, or None if it was not run."""
        return next((entry for entry in self.entries if entry.run.name == name), None)

    @property
    def rivals(self) -> list[Entry]:
        """Return the contenders that wrote a model."""
        return [entry for entry in self.entries if entry.score and entry.run.name not in NAMES]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The compiler against the best contender in each respect, on one model.

    Attributes:
        name: the model.
        sqnr_gain_db: SQNR above the best contender's, of the output where that is least.
        latency_ratio: latency over that of the fastest contender.
        float_latency_ratio: latency over that of the float original.
        size_ratio: file bytes over those of the smallest contender.
        wall_ratio: compile seconds over those of the quickest contender.
        memory_ratio: peak memory over that of the leanest contender.
    """

    name: str
    sqnr_gain_db: float
    latency_ratio: float
    float_latency_ratio: float
    size_ratio: float
    wall_ratio: float
    memory_ratio: float


def scorable(original: Path, run: ToolRun, feed: Arrays) -> ToolRun:
    """Return the run, without its file and with the reason if that file cannot be scored."""
    problem = incompatibility(original, run.model, feed) if run.model else ""
    if not problem:
        return run
    return replace(run, model=None, notes="; ".join(filter(None, (run.notes, problem))))


def compare(result: ModelResult) -> Comparison | None:
    """Return the comparison, or None if the compiler's result was refused or no contender wrote a model."""
    compiled = result.entry(WITH_DATA)
    if compiled is None or compiled.score is None or not compiled.run.accepted or not result.rivals:
        return None
    scores = [entry.score for entry in result.rivals if entry.score]
    costs = [entry.run.measured for entry in result.rivals]
    gains = [value - max(score.sqnr_db[output] for score in scores) for output, value in compiled.score.sqnr_db.items()]
    latency = compiled.score.latency.minimum
    return Comparison(
        name=result.model.name,
        sqnr_gain_db=min(gains),
        latency_ratio=latency / min(score.latency.minimum for score in scores),
        float_latency_ratio=latency,
        size_ratio=compiled.score.file_bytes / min(score.file_bytes for score in scores),
        wall_ratio=compiled.run.measured.wall_seconds / min(cost.wall_seconds for cost in costs),
        memory_ratio=compiled.run.measured.peak_bytes / min(cost.peak_bytes for cost in costs),
    )


GOALS: dict[str, Callable[[Comparison], bool]] = {
    "SQNR at or above the best contender": lambda c: c.sqnr_gain_db >= 0,
    "SQNR at least 1 dB above the best contender": lambda c: c.sqnr_gain_db >= 1,
    "latency at or below the fastest contender": lambda c: c.latency_ratio <= 1,
    f"latency within {_NOISE} of the fastest contender": lambda c: c.latency_ratio <= _NOISE,
    f"latency within {_NOISE} of the float original": lambda c: c.float_latency_ratio <= _NOISE,
    "file at or below the smallest contender": lambda c: c.size_ratio <= 1,
}
"""The goals: a sentence and the test that a model meets it."""
