"""The cut of -O2 as text: which nodes stayed in float because that was measured to be faster, and what it saves."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from qcompiler.records import CompileReport, LayerReport
from qcompiler.report.words import count, printable

PASS = "measured-placement"
TITLE = "Measured placement"
SPLIT_COLUMNS = ("split", "predicted", "measured", "prediction off by", "of all integers", "kept")
SPLIT_FIGURES = SPLIT_COLUMNS[1:5]
ALIGNED = "measured latency ratio with aligned channels"
KEPT = "kept split, by latency"
_SPLIT = re.compile(r"measured latency ratio of split (\d+)")


@dataclass(frozen=True, slots=True)
class CutFacts:
    """What one compilation found out about splits between integers and float.

    Attributes:
        nodes: the nodes that stayed in float, in graph order.
        figures: name -> value of what was predicted and measured.
        aligned: convolutions that read more channels than they had.
    """

    nodes: tuple[LayerReport, ...]
    figures: dict[str, float]
    aligned: tuple[str, ...]


def cut_facts(report: CompileReport) -> CutFacts | None:
    """Return what was found out, None where placement was not measured."""
    found = next((entry for entry in report.passes if entry.name == PASS), None)
    if found is None:
        return None
    prefix = "input channels of "
    return CutFacts(
        nodes=tuple(layer for layer in report.layers if PASS in layer.decided_by),
        figures={m.name: m.value for m in found.metrics},
        aligned=tuple(key.removeprefix(prefix) for key in report.choices if key.startswith(prefix)),
    )


def cut_sentence(facts: CutFacts) -> str:
    """Return the outcome in one line."""
    parts = []
    if facts.nodes:
        kinds = Counter(layer.op_type for layer in facts.nodes)
        types = ", ".join(f"{n} {printable(op)}" for op, n in kinds.most_common(3))
        more = ", ..." if len(kinds) > 3 else ""
        parts.append(f"{count(len(facts.nodes), 'node')} in float ({types}{more})" + _saving(facts))
    if facts.aligned:
        ratio = facts.figures.get(ALIGNED)
        measured = f", {ratio:.3f}x of the latency before" if ratio is not None else ""
        parts.append(f"{count(len(facts.aligned), 'convolution')} with aligned input channels{measured}")
    return "; ".join(parts) or "all integers: nothing that was tried is faster"


def _saving(facts: CutFacts) -> str:
    measured = facts.figures.get("measured latency saved by the split")
    predicted = facts.figures.get("predicted latency saved by the split")
    if measured is None or predicted is None:
        return ""
    return f", {measured:.1f} % faster (predicted {predicted:.1f} %)"


def by_operator(facts: CutFacts) -> list[tuple[str, list[str]]]:
    """Return (operator, names) of the nodes that stayed in float, the most frequent operator first."""
    groups: dict[str, list[str]] = {}
    for layer in facts.nodes:
        groups.setdefault(layer.op_type, []).append(layer.name)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def split_rows(facts: CutFacts) -> list[tuple[str, ...]]:
    """Return one row per split that was timed, in the order of ``SPLIT_COLUMNS``."""
    figures = facts.figures
    numbers = [int(found.group(1)) for name in figures if (found := _SPLIT.fullmatch(name))]
    return [
        (
            str(number),
            _text(figures.get(f"predicted latency of split {number}"), ".0f", " us"),
            _text(figures.get(f"measured latency of split {number}"), ".0f", " us"),
            _text(figures.get(f"predicted latency of split {number} is off by"), "+.1f", " %"),
            _text(figures.get(f"measured latency ratio of split {number}"), ".3f", "x"),
            "yes" if figures.get(KEPT) == number else "no",
        )
        for number in numbers
    ]


def _text(value: float | None, form: str, unit: str) -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
