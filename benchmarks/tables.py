"""Markdown tables of what the suite has measured."""

from __future__ import annotations

import math
import platform
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.compiler import NO_DATA, PLACED, WITH_DATA
from benchmarks.process import Measured
from benchmarks.results import GOALS, Comparison, Entry, ModelResult, compare
from benchmarks.scoring import LatencyRatio, Score

_PACKAGES = ("qcompiler", "onnx", "onnxruntime", "onnx-ir", "onnxscript", "numpy", "torch")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column is aligned left and the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def deliver(parts: Iterable[str], place: Path | None) -> None:
    """Write the parts of a report to a file, or print them where none is named."""
    text = "\n".join(parts)
    if place is None:
        print(text)
    else:
        place.write_text(text + "\n", encoding="utf-8")


def wrapped(text: str) -> str:
    """Return a paragraph in lines of at most 110 characters."""
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def percent(share: float | None) -> str:
    """Return a share as percent with two decimals, or a dash."""
    return "-" if share is None else f"{100 * share:.2f}"


def decibels(value: float) -> str:
    """Return a signal-to-noise ratio with two decimals."""
    return "exact" if math.isinf(value) else f"{value:.2f}"


def sqnr(by_output: Mapping[str, float]) -> str:
    """Return the signal-to-noise ratio, with the outputs' names where there are several."""
    if len(by_output) == 1:
        return decibels(next(iter(by_output.values())))
    return ", ".join(f"{name} {decibels(value)}" for name, value in by_output.items())


def latency(ratio: LatencyRatio) -> str:
    """Return a ratio of minima with its spread."""
    return f"{ratio.minimum:.3f} +- {ratio.spread:.3f}"


def megabytes(count: int) -> str:
    """Return bytes as MB (10**6 bytes)."""
    return f"{count / 1e6:.0f}"


def environment(command: str) -> str:
    """Return the section that says what was run on what."""
    rows = [("command", f"`{command}`"), ("processor", _processor()), ("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "from the checkout, not installed"))
    return "## Environment\n\n" + markdown_table(("what", "value"), rows)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    wanted = [name for name in ("avx2", "avx512_vnni", "avx_vnni") if name in names.get("flags", "").split()]
    cores = sum(line.startswith("processor") for line in lines)
    return f"{names.get('model name', platform.processor())}, {cores} cores, {', '.join(wanted) or 'no AVX2'}"


def model_section(result: ModelResult, hidden: Mapping[str, str]) -> str:
    """Return the table of one model.

    Args:
        result: what was measured.
        hidden: paths that must not be printed, and what to print for each.
    """
    header = (
        "tool",
        "SQNR dB",
        "agreement %",
        "top-1 %",
        "ops in float",
        "ops in integer",
        "file bytes",
        "latency, min",
        "latency, median",
        "wall s",
        "peak MB",
        "notes",
    )
    rows = [["float original", *_score_cells(result.original), "", "", ""]]
    rows += [[entry.run.name, *_entry_cells(entry, hidden)] for entry in result.entries]
    about = wrapped(f"{result.model.source}. {result.model.rows}.")
    return f"### {result.model.name}\n\n{about}\n\n{markdown_table(header, rows)}"


def _score_cells(score: Score | None) -> list[str]:
    if score is None:
        return ["-"] * 8
    return [
        sqnr(score.sqnr_db),
        percent(score.fidelity.agreement),
        percent(score.fidelity.accuracy),
        str(score.float_ops),
        str(score.integer_ops),
        str(score.file_bytes),
        latency(score.latency),
        f"{score.latency.median:.3f}",
    ]


def _entry_cells(entry: Entry, hidden: Mapping[str, str]) -> list[str]:
    return [*_score_cells(entry.score), *cost_cells(entry.run.measured), note(entry.run.notes, hidden)]


def cost_cells(measured: Measured) -> list[str]:
    """Return wall seconds and peak megabytes."""
    return [f"{measured.wall_seconds:.1f}", megabytes(measured.peak_bytes)]


def note(text: str, hidden: Mapping[str, str]) -> str:
    """Return a note that fits a table cell, without the machine's paths."""
    for path, shown in hidden.items():
        text = text.replace(path, shown)
    return text.replace("|", "/").replace("\n", " ")[:300]


def summary_section(results: Sequence[ModelResult]) -> str:
    """Return the compiler against the best contender, model by model, and how often each goal is met."""
    compared = [(result.model.name, compare(result)) for result in results]
    header = (
        "model",
        "SQNR gain dB",
        "latency / fastest",
        "latency / float",
        "file / smallest",
        "wall / quickest",
        "memory / leanest",
    )
    rows = [[name, *_comparison_cells(comparison)] for name, comparison in compared]
    met = [
        [goal, f"{sum(bool(one and reached(one)) for _, one in compared)} of {len(compared)}"]
        for goal, reached in GOALS.items()
    ]
    return "\n".join(
        [
            "## Against the best contender\n",
            "Each column compares with the contender that is best in that respect; SQNR is that of the output"
            "\nthat gains least. A refused or failed compilation meets no goal.\n",
            markdown_table(header, rows),
            markdown_table(("goal", "models"), met),
        ]
    )


def _comparison_cells(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return ["-"] * 6
    return [
        f"{comparison.sqnr_gain_db:+.2f}",
        f"{comparison.latency_ratio:.3f}",
        f"{comparison.float_latency_ratio:.3f}",
        f"{comparison.size_ratio:.3f}",
        f"{comparison.wall_ratio:.2f}",
        f"{comparison.memory_ratio:.2f}",
    ]


def placement_section(results: Sequence[ModelResult]) -> str:
    """Return what placement by measured latency gains over the fastest of everything else, or ""."""
    header = (
        "model",
        "latency / float",
        "before",
        "fastest contender",
        "/ fastest other",
        "SQNR",
        "before",
        "float ops",
    )
    rows = []
    for result in results:
        placed, plain = result.entry(PLACED), result.entry(WITH_DATA)
        if placed is None or placed.score is None or plain is None or plain.score is None or not result.rivals:
            continue
        rival = min(entry.score.latency.minimum for entry in result.rivals if entry.score)
        fastest = min(rival, plain.score.latency.minimum, 1.0)
        cells = [latency(placed.score.latency), f"{plain.score.latency.minimum:.3f}", f"{rival:.3f}"]
        cells += [f"{placed.score.latency.minimum / fastest:.3f}", sqnr(placed.score.sqnr_db)]
        rows.append([result.model.name, *cells, sqnr(plain.score.sqnr_db), str(placed.score.float_ops)])
    about = "`-O2` places nodes by measured latency; `before` is the default level. `fastest other` is the fastest of"
    about += "\nthe float original, the default level and every contender.\n"
    return f"## Placement by measured latency\n\n{about}\n{markdown_table(header, rows)}" if rows else ""


def no_data_section(results: Sequence[ModelResult]) -> str:
    """Return what the compiler loses without calibration samples, or "" if that was not measured."""
    header = ("model", "float top-1 %", "with data", "without", "SQNR with", "without", "float ops without")
    rows = []
    for result in results:
        scores = [entry.score if (entry := result.entry(name)) else None for name in (WITH_DATA, NO_DATA)]
        if result.entry(NO_DATA) is not None:
            accuracies = [percent(score.fidelity.accuracy) if score else "-" for score in scores]
            noise = [sqnr(score.sqnr_db) if score else "-" for score in scores]
            left = str(scores[1].float_ops) if scores[1] else "-"
            original = percent(result.original.fidelity.accuracy)
            rows.append([result.model.name, original, *accuracies, *noise, left])
    return f"## Without data\n\n{markdown_table(header, rows)}" if rows else ""
