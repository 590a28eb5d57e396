"""A page for a pull request, in GitHub's Markdown: the verdicts, then floors and worst layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from qcompiler.records import CompileReport
from qcompiler.report import compare, digest, words
from qcompiler.report.document import write_text

WORST_LAYERS = 5
_NAME_WIDTH = 80
_TEXT_WIDTH = 400
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~$@:&-])")


def markdown_summary(reports: Sequence[CompileReport]) -> str:
    """Return the page: one table of verdicts, then one section per target."""
    if not reports:
        return "# qcompile\n\nNothing was compiled.\n"
    rows = [[escape(cell) for cell in row] for row in compare.verdict_rows(reports)]
    parts = [
        f"# qcompile: {_title(reports)}",
        "\n".join(f"- {_bold(report)} {escape(digest.verdict_sentence(report))}" for report in reports),
        _table(compare.verdict_columns(reports), rows),
        *(_section(report) for report in reports),
    ]
    return "\n\n".join(parts) + "\n"


def write_summary(reports: Sequence[CompileReport], path: Path) -> Path:
    """Write the page to a file and return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_text(path, markdown_summary(reports))


def escape(text: str, width: int = _TEXT_WIDTH) -> str:
    """Return a text in one line that Markdown shows as it is: no markup, no HTML, no mention, no link."""
    return _SPECIAL.sub(_entity, words.shorten(text, width))


def _entity(found: re.Match[str]) -> str:
    character = found.group(1)
    return character if character in "-:()" else f"&#{ord(character)};"


def _title(reports: Sequence[CompileReport]) -> str:
    rejected = sum(not report.verdict.held for report in reports)
    if not rejected:
        return "every floor held"
    return f"{rejected} of {words.count(len(reports), 'target')} rejected"


def _bold(report: CompileReport) -> str:
    return f"**{digest.HEADLINES[digest.status(report.verdict)]}**"


def _section(report: CompileReport) -> str:
    floors = [
        [
            f"**{digest.floor_state(floor)}**" if floor.held is False else digest.floor_state(floor),
            escape(floor.name),
            escape(words.figure(floor.reached, floor.unit)),
            escape(f"{floor.direction} {words.figure(floor.limit, floor.unit)}"),
            floor.asked_by,
        ]
        for floor in report.verdict.floors
    ]
    worst = [
        [
            escape(layer.name, _NAME_WIDTH),
            escape(layer.op_type),
            words.figure(layer.sqnr_db, "dB"),
            escape(layer.cause or "-"),
            layer.precision.replace("_", " "),
        ]
        for layer in digest.worst_layers(report, WORST_LAYERS)
    ]
    parts = [f"## {escape(report.target)}", f"{escape(digest.integer_phrase(report.verdict))}."]
    if floors:
        parts.append(_table(("Floor", "What", "Reached", "Limit", "Set by"), floors))
    if worst:
        parts.append(_table(("Noisiest layers", "Operator", "SQNR", "Cause", "Planned"), worst))
    return "\n\n".join(parts)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
