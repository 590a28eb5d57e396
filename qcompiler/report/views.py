"""What a report says about one layer or one pass, in a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rich.console import Console

from qcompiler.errors import UsageError
from qcompiler.records import CompileReport, LayerReport, PassReport, Table, TableRow
from qcompiler.report import instructions, words
from qcompiler.report.layout import heading, show, show_facts

_CLOSE = 5


def print_layer(report: CompileReport, console: Console, name: str) -> None:
    """Print everything the report says about one node of the original graph.

    Raises:
        UsageError: no layer has this name; the closest names are given.
    """
    layers = {layer.name: layer for layer in report.layers}
    layer = layers.get(name) or next((v for v in report.layers if v.output == name), None)
    if layer is None:
        raise _unknown("layer", name, layers)
    heading(console, f"{layer.name} ({layer.op_type})")
    show_facts(console, _layer_facts(report, layer))


def print_pass(report: CompileReport, console: Console, name: str) -> None:
    """Print everything the report says about one pass; a pass that ran twice is printed twice.

    Raises:
        UsageError: no pass has this name; the closest names are given.
    """
    found = [entry for entry in report.passes if entry.name == name]
    if not found:
        raise _unknown("pass", name, [entry.name for entry in report.passes])
    for entry in found:
        heading(console, entry.name)
        show_facts(console, _pass_facts(entry))
        if entry.skipped:
            heading(console, f"Left alone ({len(entry.skipped):,})")
        for skip in entry.skipped:
            show(console, f"{skip.tensor}: {skip.reason}")
        for table in entry.tables:
            heading(console, table.title)
            for row in table.rows:
                show(console, _row_text(table, row))


def _layer_facts(report: CompileReport, layer: LayerReport) -> dict[str, str]:
    runs = {True: "integers", False: "float", None: "not read from the runtime"}[layer.runs_integer]
    facts = {
        "output": layer.output,
        "planned": layer.precision,
        "runs in": runs,
        "why": layer.reason or "no reason recorded",
        "decided by": ", ".join(layer.decided_by) or "nobody",
        "SQNR": words.figure(layer.sqnr_db, "dB"),
        "cause": layer.cause or "-",
        "weights": _weights(layer),
        "weight SQNR": words.figure(layer.weight_db, "dB"),
        "clip": words.span(layer.clip),
        "observed": words.span(layer.observed),
        "constants": f"{words.bytes_text(layer.bytes_before)} -> {words.bytes_text(layer.bytes_after)}",
    }
    for time in report.layer_times:
        if time.name == layer.name:
            facts["time"] = f"{words.figure(time.before_us, 'us')} -> {words.figure(time.after_us, 'us')}"
    for run in report.verdict.emulated:
        for node in run.nodes:
            if node.name == layer.name:
                facts[f"instructions (emulated) on {run.board}"] = instructions.node_phrase(node)
    return facts


def _pass_facts(entry: PassReport) -> dict[str, str]:
    facts = {"changed": "yes" if entry.changed else "no", "seconds": f"{entry.seconds:.2f}"}
    facts.update({f"option {key}": str(value) for key, value in entry.options.items()})
    facts.update({metric.name: words.figure(metric.value, metric.unit) for metric in entry.metrics})
    facts.update({f"note {i}": note for i, note in enumerate(entry.notes, 1)})
    return facts


def _row_text(table: Table, row: TableRow) -> str:
    figures = [f"{c} {words.figure(v, table.unit)}" for c, v in zip(table.columns, row.values, strict=True)]
    return f"{row.name}: {', '.join(figures)}" + (f" ({row.note})" if row.note else "")


def _unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=_CLOSE, cutoff=0.4)
    close = close or [n for n in names if name.lower() in n.lower()][:_CLOSE]
    shown = ", ".join(repr(words.printable(n)) for n in close or names[:_CLOSE])
    hint = "closest" if close else "it has"
    listed = f"; {hint}: {shown}" if shown else ""
    return UsageError(f"the report has no {kind} {words.printable(name)!r}{listed}")


def _weights(layer: LayerReport) -> str:
    """Return the width of a layer's weights and how their codes were found."""
    if layer.weight_bits is None:
        return "-"
    bits = words.count(layer.weight_bits, "bit")
    return f"{bits}: {layer.weight_reason}" if layer.weight_reason else bits
