"""What differs between two reports: the work of ``qcompile diff DIR1 DIR2``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from qcompiler.records import CompileReport, LayerReport
from qcompiler.report import digest, words
from qcompiler.report.document import is_measured
from qcompiler.report.layout import add_row, heading, show, table

ABSENT = "-"
SHOWN_ROWS = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two reports say differently."""

    section: str
    what: str
    left: str
    right: str


def print_diff(left: CompileReport, right: CompileReport, console: Console, *, verbose: bool = False) -> None:
    """Print what differs between two reports, section by section; says so when nothing does.

    Times and memory differ between any two runs: they are shown last and do not count as a difference.
    """
    found = differences(left, right)
    if not found:
        console.print("Nothing differs: same model, recipe, plan, outputs and sizes.")
    for section in dict.fromkeys(d.section for d in found):
        _print_section(section, [d for d in found if d.section == section], console, verbose=verbose)
    measured = measured_differences(left, right)
    if measured:
        _print_section("measured (differs between any two runs)", measured, console, verbose=verbose)


def differences(left: CompileReport, right: CompileReport) -> list[Difference]:
    """Return everything that differs, except what was measured in time or memory."""
    pairs = (
        ("origin", _origin(left), _origin(right)),
        ("recipe", flatten(left.recipe), flatten(right.recipe)),
        ("passes", _passes(left), _passes(right)),
        ("choices", left.choices, right.choices),
        ("floors", _floors(left, measured=False), _floors(right, measured=False)),
        ("outputs", _outputs(left), _outputs(right)),
        ("sizes", _sizes(left), _sizes(right)),
        ("layers", _layers(left), _layers(right)),
    )
    return [difference for pair in pairs for difference in _compare(*pair)]


def measured_differences(left: CompileReport, right: CompileReport) -> list[Difference]:
    """Return the differences in latency, memory, and floors on these."""
    return list(_compare("measured", _measured(left), _measured(right)))


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values under dotted names, as text."""
    flat: dict[str, str] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat.update(flatten(inner, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = ABSENT if inner is None else str(inner)
    return flat


def _compare(section: str, left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Difference]:
    for what in dict.fromkeys([*left, *right]):
        before, after = left.get(what, ABSENT), right.get(what, ABSENT)
        if before != after:
            yield Difference(section, what, before, after)


def _print_section(title: str, found: list[Difference], console: Console, *, verbose: bool) -> None:
    heading(console, title.capitalize())
    shown = found if verbose else found[:SHOWN_ROWS]
    width = console.width // 2
    rows = table("what", "left", "right")
    for difference in shown:
        name = Text(words.shorten(difference.what, width), no_wrap=True)
        add_row(rows, name, difference.left, difference.right)
    show(console, rows)
    if len(shown) < len(found):
        show(console, f"and {len(found) - len(shown):,} more")


def _origin(report: CompileReport) -> dict[str, str]:
    data = report.data
    return {
        "model": f"{report.model.file_name} {report.model.sha256[:12]}",
        "target": report.target,
        "data": f"{data.source} {data.fingerprint}" if data else "none",
        **{f"version of {name}": version for name, version in report.versions.items()},
    }


def _passes(report: CompileReport) -> dict[str, str]:
    facts = {"order": ", ".join(entry.name for entry in report.passes)}
    for entry in report.passes:
        options = ", ".join(f"{k}={v}" for k, v in sorted(entry.options.items()))
        facts[f"{entry.name} options"] = options or ABSENT
        facts[f"{entry.name} left alone"] = str(len(entry.skipped))
        for metric in entry.metrics:
            if not is_measured(metric.name, metric.unit):
                facts[f"{entry.name} {metric.name}"] = words.figure(metric.value, metric.unit)
    return facts


def _floors(report: CompileReport, *, measured: bool) -> dict[str, str]:
    return {
        floor.name: f"{digest.floor_state(floor)}, {words.figure(floor.reached, floor.unit)} "
        f"({floor.direction} {words.figure(floor.limit, floor.unit)})"
        for floor in report.verdict.floors
        if is_measured(floor.name, floor.unit) is measured
    }


def _outputs(report: CompileReport) -> dict[str, str]:
    verdict = report.verdict
    facts = {"compared on": f"{verdict.samples:,} {verdict.data}", "failure": verdict.failure or "none"}
    facts["in integers"] = digest.integer_phrase(verdict)
    if verdict.metric is not None:
        facts["metric"] = digest.metric_phrase(verdict.metric)
    for output in verdict.outputs:
        facts[f"{output.name} SQNR"] = words.output_db(output.sqnr_db)
        if output.agreement is not None:
            facts[f"{output.name} same answer"] = words.figure(100 * output.agreement, "%")
    return facts


def _sizes(report: CompileReport) -> dict[str, str]:
    files = {name: f"{size:,} bytes" for name, size in digest.written_files(report.verdict).items()}
    return {"original": f"{report.model.file_bytes:,} bytes", **files}


def _layers(report: CompileReport) -> dict[str, str]:
    return {f"{layer.name}: {key}": v for layer in report.layers for key, v in _layer_facts(layer).items()}


def _layer_facts(layer: LayerReport) -> dict[str, str]:
    return {
        "planned": layer.precision,
        "runs in": {True: "integers", False: "float", None: "not read"}[layer.runs_integer],
        "SQNR": words.figure(layer.sqnr_db, "dB"),
        "bytes": f"{layer.bytes_after:,}",
        "clip": words.span(layer.clip),
        "decided by": ", ".join(layer.decided_by) or ABSENT,
    }


def _measured(report: CompileReport) -> dict[str, str]:
    latency = report.verdict.latency
    facts = _floors(report, measured=True)
    facts["latency"] = digest.latency_phrases(latency)[0] if latency else "not measured"
    for name, size in report.verdict.memory_bytes.items():
        facts[f"peak memory, {name}"] = words.bytes_text(size)
    return facts
