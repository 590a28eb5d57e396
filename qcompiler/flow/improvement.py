"""From the first verified result to a better one: searches one after the other, and nothing is ever lost by one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qcompiler.flow.attempt import Attempt, Attempts, dumped
from qcompiler.model.probe import shorten
from qcompiler.passes import IMPROVING
from qcompiler.pipeline import Pipeline
from qcompiler.plan import CompressionPlan, Role
from qcompiler.protocols import Pass, PassKind
from qcompiler.records import PassReport, Search, SearchStage, StageOutcome
from qcompiler.state import Context, State

FULL_BITS = 8
"""What is as wide as this is improved by nothing unless the user names the pass: see ``IMPROVING``."""

_BUILT_IN = frozenset(name for names in IMPROVING.values() for name in names)


def improves(step: Pass) -> bool:
    """Return True for a pass that runs behind the first verified result: a built-in one, or one that says so."""
    return step.kind is PassKind.PLAN and (step.name in _BUILT_IN or bool(getattr(step, "improving", False)))


def worth_improving(plan: CompressionPlan) -> bool:
    """Return True if some weight or activation has fewer bits than a byte."""
    specs = (t.spec for t in plan.tensors.values() if t.role in (Role.WEIGHT, Role.ACTIVATION))
    return any(s is not None and s.num_bits < FULL_BITS for s in specs)


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """What became of a search: its outcome and level, and if it was taken, the attempt and the report of its pass."""

    outcome: StageOutcome
    level: float | None = None
    attempt: Attempt | None = None
    report: PassReport | None = None
    detail: str = ""


@dataclass(slots=True)
class Improvement:
    """Improves a result for as long as its budget lasts.

    What a search returns is accepted if acceptance samples say that it is better, and if it then passes the gate
    as well as what it would replace. The gate's own samples only say yes or no: a result that was chosen by them
    could no longer be proven on them. A search starts from the best plan as it was before any repair, so that a
    better plan may need fewer.

    Attributes:
        attempts: lowers, writes and verifies.
        context: of the compilation.
        folder: holds the files of the best result, always complete.
        best: the best result so far.
        settling: passes that run behind every search, such as the correction of biases.
        reports: of the accepted searches.
        stages: what was tried, in order.
        level: of the best plan before repair, on the acceptance samples (``Context.closeness``), in dB; None before
            it is known.
    """

    attempts: Attempts
    context: Context
    folder: Path
    best: Attempt
    settling: tuple[Pass, ...] = ()
    reports: list[PassReport] = field(default_factory=list)
    stages: list[SearchStage] = field(default_factory=list)
    level: float | None = None

    def run(self, steps: Sequence[Pass], first_seconds: float) -> Search | None:
        """Run searches until they are done or the budget is spent; return how it went, None if there is nothing to say.

        Args:
            steps: the searches, in order.
            first_seconds: how long the first result took.
        """
        budget, log = self.context.budget, self.context.checkpoint.log
        left, notes = list(steps) if self.context.closeness is not None else [], []
        if not left and not budget.limited and not log.reused:
            return None
        outcome: StageOutcome = "verified" if self.best.held else "floor missed"
        first = SearchStage(name="first result", outcome=outcome, seconds=first_seconds, reused=log.reused)
        if left and not budget.spent():
            self.level = self._level(self.best.planned)
        self.stages.append(replace(first, after_db=self.level))
        if budget.cause() in ("time", "memory"):
            notes.append(f"the first result took the {budget.cause()} there was; it was finished all the same")
        while left and not budget.spent():
            self.stages.append(self._stage(left.pop(0)))
        cut = budget.cause()
        if left:
            notes.append(f"not run: {', '.join(step.name for step in left)}")
        return Search(ended=cut or "complete", stages=tuple(self.stages), notes=(*notes, *log.notes))

    def _stage(self, step: Pass) -> SearchStage:
        """Run one search and return how it went; what it raises is a note, and the best result stays."""
        started, reused = time.perf_counter(), self.context.checkpoint.log.reused
        before, place = self.level, self.folder / "attempt"
        try:
            tried = self._tried(step, place)
        except Exception as error:  # whatever a search does, a verified result is at hand
            kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
            tried = _Tried("failed", detail=shorten(f"{kind}: {error}" if str(error) else kind))
        if tried.attempt is not None:
            self._adopt(tried, place)
        shutil.rmtree(place, ignore_errors=True)
        return SearchStage(
            name=step.name,
            outcome=tried.outcome,
            before_db=before,
            after_db=tried.level,
            seconds=time.perf_counter() - started,
            reused=self.context.checkpoint.log.reused - reused,
            detail=tried.detail,
        )

    def _tried(self, step: Pass, place: Path) -> _Tried:
        """Return what became of a search; an attempt that is to be taken lies in ``place``."""
        searching = Pipeline((step, *self.settling), self.attempts.job.samples.probe)
        timed, after = self.attempts.watch.timed, dumped(self.attempts.job, self.folder)
        found, (report, *_) = timed("improving", searching.run, self.best.planned, self.context, after)
        if not report.changed:
            return _Tried("nothing to do", detail="; ".join(report.notes))
        level = self._level(found)
        if self.level is not None and not level > self.level:
            return _Tried("not better", level)
        place.mkdir()
        # What needs no repair is not replaced by what needs some.
        attempt = self.attempts.make(found, place, repairing=not self.best.held or bool(self.best.repair.reverted))
        if attempt.rank < self.best.rank:
            return _Tried("gate missed", level, detail=attempt.gate.verdict.failure or _missed(attempt))
        return _Tried("better", level, attempt, report)

    def _level(self, state: State) -> float:
        closeness = self.context.closeness
        return self.attempts.watch.timed("improving", closeness, state) if closeness is not None else 0.0

    def _adopt(self, tried: _Tried, place: Path) -> None:
        """Make an attempt the best one, and put its files in the place of those that were."""
        for name in self.best.gate.verdict.file_bytes:
            (self.folder / name).unlink(missing_ok=True)
        for path in sorted(p for p in place.rglob("*") if p.is_file()):
            target = self.folder / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        if tried.attempt is not None and tried.report is not None:
            self.best, self.level = tried.attempt, tried.level
            self.reports.append(tried.report)


def _missed(attempt: Attempt) -> str:
    verdict = attempt.gate.verdict
    names = ", ".join(f.name for f in verdict.missed)
    return f"missed: {names}" if names else f"{len(attempt.repair.reverted)} nodes would go back to float"
