"""What a report says of the search for a better result: one line, and a row for every stage."""

from __future__ import annotations

from qcompiler.records import Search, SearchStage
from qcompiler.report.words import count, figure, shorten

COLUMNS = ("stage", "outcome", "before", "after", "seconds", "reused")
FIGURES = ("before", "after", "seconds", "reused")
CAPTION = "Closeness in dB on acceptance samples; the gate's own samples decide nothing but whether a result holds"

_ENDS = {
    "complete": "complete",
    "time": "the time was up: best verified result so far",
    "memory": "the memory limit was reached: best verified result so far",
    "interrupted": "interrupted: best verified result so far",
}


def search_line(search: Search) -> str:
    """Return how the search ended, what it gained, and how long it took, in one line."""
    first, later = search.stages[0], search.stages[1:]
    taken = [stage for stage in later if stage.outcome == "better"]
    parts = [_ENDS[search.ended] if first.outcome == "verified" or taken else search.ended]
    if later:
        parts.append(f"{len(taken)} of {count(len(later), 'search', 'searches')} gained")
    if taken:
        parts.append(f"{figure(first.after_db, 'dB')} -> {figure(taken[-1].after_db, 'dB')} on acceptance samples")
    parts.append(f"{sum(stage.seconds for stage in search.stages):.0f} s")
    if reused := sum(stage.reused for stage in search.stages):
        parts.append(f"{count(reused, 'part')} of an earlier search reused")
    return "; ".join(parts)


def stage_row(stage: SearchStage) -> list[str]:
    """Return what there is to say of a stage, one text for each of ``COLUMNS``."""
    outcome = f"{stage.outcome}: {shorten(stage.detail, 120)}" if stage.detail else stage.outcome
    levels = [figure(level, "dB") for level in (stage.before_db, stage.after_db)]
    return [shorten(stage.name, 40), outcome, *levels, f"{stage.seconds:.1f}", f"{stage.reused:,}"]
