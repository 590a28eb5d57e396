"""Several targets side by side: in the terminal, as JSON and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from qcompiler.records import CompileReport, Verdict
from qcompiler.report import digest, words
from qcompiler.report.document import to_document, write_text
from qcompiler.report.html import environment, page_assets
from qcompiler.report.layout import add_row, heading, show, table

SCHEMA = "qcompile.comparison/1"
JSON_NAME = "comparison.json"
HTML_NAME = "comparison.html"
VERDICT_COLUMNS = ("Target", "Verdict", "Metric", "Same answer", "SQNR", "Latency", "File", "In integers")
INSTRUCTIONS = "Instructions"
"""One more column where any report counted them: on the target's own board, emulated; a count and no time."""
_NARROW = ("Target", "Verdict", "SQNR", "Latency", "File", INSTRUCTIONS)
_WIDE = 100
_SUMMARY_KEYS = ("data", "samples", "outputs", "metric", "integer", "file_bytes", "executed_on", "failure")


def print_comparison(reports: Sequence[CompileReport], console: Console) -> None:
    """Print one line per target, then the verdict of each in a sentence."""
    columns = verdict_columns(reports)
    shown = [i for i, name in enumerate(columns) if console.width >= _WIDE or name in _NARROW]
    heading(console, "Targets side by side")
    rows = table(*(columns[i] for i in shown), right=columns[2:])
    for report, cells in zip(reports, verdict_rows(reports), strict=True):
        style = "green" if report.verdict.held else "bold red"
        styled = [Text(cells[i], style=style) if i == 1 else cells[i] for i in shown]
        add_row(rows, *styled)
    show(console, rows)
    console.print()
    for report in reports:
        show(console, digest.verdict_sentence(report))


def verdict_columns(reports: Sequence[CompileReport]) -> tuple[str, ...]:
    """Return the names of the columns of ``verdict_rows``."""
    return (*VERDICT_COLUMNS, INSTRUCTIONS) if _counted(reports) else VERDICT_COLUMNS


def verdict_rows(reports: Sequence[CompileReport]) -> list[list[str]]:
    """Return one row of plain text per report, in the order of ``verdict_columns``."""
    counted = _counted(reports)
    return [[*_verdict_row(r), *([_instructions(r.verdict)] if counted else [])] for r in reports]


def _counted(reports: Sequence[CompileReport]) -> bool:
    return any(report.verdict.emulated for report in reports)


def _instructions(verdict: Verdict) -> str:
    return f"{verdict.emulated[0].ratio:.2f}x" if verdict.emulated else "not counted"


def comparison_document(reports: Sequence[CompileReport]) -> dict[str, Any]:
    """Return the comparison as JSON values; what differs between runs lies under ``measured``."""
    documents = [to_document(report) for report in reports]
    targets = [
        {
            "target": d["target"],
            "model": d["model"]["file_name"],
            "sha256": d["model"]["sha256"],
            "floors": d["verdict"]["floors"],
            **{key: d["verdict"][key] for key in _SUMMARY_KEYS},
        }
        for d in documents
    ]
    keys = ("held", "latency", "latency_unavailable", "floors")
    measured = [{"target": d["target"], **{k: d["measured"][k] for k in keys}} for d in documents]
    for entry, report in zip(measured, reports, strict=True):
        if report.verdict.emulated:  # as in a report: a key for who asked
            entry["instructions"] = [
                {"board": run.board, "original": run.original.total, "result": run.result.total}
                for run in report.verdict.emulated
            ]
    return {"schema": SCHEMA, "targets": targets, "measured": {"targets": measured}}


def comparison_html(reports: Sequence[CompileReport], folders: Sequence[str] = ()) -> str:
    """Return one page that compares the targets.

    Args:
        reports: one report per target.
        folders: the folder of each report, relative to the page, to link to; empty for no links.
    """
    links = [f"{quote(folder)}/report.html" for folder in folders] or [""] * len(reports)
    states = [digest.status(report.verdict) for report in reports]
    rows = zip(states, verdict_rows(reports), links, strict=True)
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            **page_assets(("vendor/sortable.min.js",)),
            columns=verdict_columns(reports),
            counted=_counted(reports),
            rows=list(rows),
            sentences=[(s, digest.verdict_sentence(r)) for s, r in zip(states, reports, strict=True)],
            floors=[(r.target, floor) for r in reports for floor in r.verdict.floors],
            model=reports[0].model.file_name if reports else "nothing",
        )
    )


def write_comparison(reports: Sequence[CompileReport], folder: Path, folders: Sequence[str] = ()) -> None:
    """Write ``comparison.json`` and ``comparison.html`` into a folder.

    Raises:
        OutputError: a file cannot be written.
    """
    text = json.dumps(comparison_document(reports), indent=1, sort_keys=True, allow_nan=False)
    write_text(folder / JSON_NAME, text + "\n")
    write_text(folder / HTML_NAME, comparison_html(reports, folders))


def _verdict_row(report: CompileReport) -> list[str]:
    verdict, ratio = report.verdict, digest.size_ratio(report)
    metric, latency, integer = verdict.metric, verdict.latency, verdict.integer
    agreements = [o.agreement for o in verdict.outputs if o.agreement is not None]
    return [
        words.shorten(report.target, 40),
        digest.HEADLINES[digest.status(verdict)],
        words.figure(metric.result, "%" if metric.name == "top1" else "") if metric else "-",
        words.figure(100 * min(agreements), "%") if agreements else "-",
        _worst_db(verdict),
        f"{latency.ratio_min:.2f}x" if latency else "not measured",
        f"{ratio:.2f}x" if ratio is not None else "-",
        f"{integer.integer_nodes} of {integer.compute_nodes}" if integer else "not read",
    ]


def _worst_db(verdict: Verdict) -> str:
    noisy = [o.sqnr_db for o in verdict.outputs if o.sqnr_db is not None]
    return words.output_db(min(noisy) if noisy else None) if verdict.outputs else "-"
