"""The report in a terminal: the verdict first, then one screen of what matters; readable without color."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from qcompiler.records import CompileReport, Floor, LayerReport
from qcompiler.report import cut, digest, instructions, search, words
from qcompiler.report.layout import add_row, heading, show, show_facts, table
from qcompiler.report.views import print_layer, print_pass

WORST_LAYERS = 10
NAMES_PER_REASON = 3
COSTLY_NODES = 8
BAR_WIDTH = 12
WIDE = 100
"""Columns from which tables show more."""
_OP_WIDTH = 12
_FIXED_WIDTH = 26
"""Columns of the layer table beside the names and the causes: figures, the bar, gaps."""
_WIDE_WIDTH = _OP_WIDTH + 12
"""Columns that the operators and the noise take."""


def print_report(
    report: CompileReport,
    console: Console,
    *,
    layer: str | None = None,
    pass_name: str | None = None,
    verbose: bool = False,
) -> None:
    """Print a report, or only what it says about one layer or one pass.

    Args:
        report: what one compilation found out.
        console: where to print; any width from 80 columns, a terminal or not.
        layer: print this node of the original graph only.
        pass_name: print this pass only.
        verbose: print every layer, every skip, and where the report comes from.

    Raises:
        UsageError: the report has no such layer or pass; the closest names are given.
    """
    if layer is not None:
        print_layer(report, console, layer)
    if pass_name is not None:
        print_pass(report, console, pass_name)
    if layer is not None or pass_name is not None:
        return
    print_verdict(report, console)
    _print_floors(report.verdict.floors, console)
    _print_figures(report, console)
    _print_outputs(report, console)
    _print_integer(report, console, verbose=verbose)
    _print_cut(report, console, verbose=verbose)
    _print_instructions(report, console, verbose=verbose)
    _print_worst(report, console, limit=None if verbose else WORST_LAYERS)
    _print_damages(report, console)
    _print_repairs(report, console)
    _print_search(report, console, verbose=verbose)
    _print_notes(report, console)
    if verbose:
        _print_passes(report, console)
        heading(console, "Origin")
        show_facts(console, digest.origin(report))


def print_verdict(report: CompileReport, console: Console) -> None:
    """Print the status and the verdict sentence."""
    state = digest.status(report.verdict)
    style = {"held": "bold green", "not verified": "bold yellow"}.get(state, "bold red")
    console.print(Text.assemble((digest.HEADLINES[state], style), "  ", digest.verdict_sentence(report)))


def _print_floors(floors: Sequence[Floor], console: Console) -> None:
    if not floors:
        return
    heading(console, "Floors")
    rows = table("state", "what", "reached", "limit", "set by", right=("reached",))
    for floor in floors:
        state = digest.floor_state(floor)
        style = {True: "green", False: "bold red", None: "yellow"}[floor.held]
        add_row(
            rows,
            Text(state, style=style),
            floor.name,
            words.figure(floor.reached, floor.unit),
            f"{floor.direction} {words.figure(floor.limit, floor.unit)}",
            floor.asked_by,
        )
        if floor.detail and floor.held is not True:
            add_row(rows, "", floor.detail)
    show(console, rows)


def _print_figures(report: CompileReport, console: Console) -> None:
    verdict = report.verdict
    heading(console, "Size and speed")
    rows = table("", "")
    add_row(rows, "file", _size_text(report))
    if widths := digest.widths_phrase(report):
        add_row(rows, "weights", widths)
    if len(verdict.stored_bytes) > 1:
        add_row(rows, "", digest.stored_phrase(verdict))
    files = digest.written_files(verdict)
    for name, size in files.items():
        if len(files) > 1:
            add_row(rows, "", f"{name} {words.bytes_text(size)}")
    if verdict.latency is not None:
        best, median, how = digest.latency_phrases(verdict.latency)
        add_row(rows, "latency", best)
        add_row(rows, "", median)
        add_row(rows, "", how)
    else:
        add_row(rows, "latency", f"not measured: {verdict.latency_unavailable or 'no reason recorded'}")
    if verdict.memory_bytes:
        peaks = ", ".join(f"{k} {words.bytes_text(v)}" for k, v in verdict.memory_bytes.items())
        add_row(rows, "memory", f"{peaks} (peak)")
    for what, text in digest.load_phrases(verdict).items():
        add_row(rows, what, text)
    if verdict.executed_on:
        add_row(rows, "executed", verdict.executed_on)
    show(console, rows)


def _size_text(report: CompileReport) -> str:
    before, after, ratio = report.model.file_bytes, digest.result_bytes(report), digest.size_ratio(report)
    if after is None or ratio is None:
        return f"{words.bytes_text(before)}; no result was kept"
    return f"{words.bytes_text(before)} -> {words.bytes_text(after)} ({ratio:.2f}x)"


def _print_outputs(report: CompileReport, console: Console) -> None:
    verdict = report.verdict
    if not verdict.outputs:
        return
    heading(console, f"Outputs against the original, on {verdict.samples:,} {verdict.data}")
    rows = table("output", "SQNR", "cosine", "largest error", "same answer", right=_OUTPUT_FIGURES)
    for output in verdict.outputs:
        same = "-" if output.agreement is None else f"{100 * output.agreement:.1f}%"
        add_row(
            rows,
            words.shorten(output.name, 30),
            words.output_db(output.sqnr_db),
            f"{output.cosine:.5f}",
            f"{output.max_abs:.3g}",
            same,
        )
    show(console, rows)
    if verdict.metric is not None:
        show(console, digest.metric_phrase(verdict.metric) + digest.flips_phrase(verdict.metric))


_OUTPUT_FIGURES = ("SQNR", "cosine", "largest error", "same answer")


def _print_integer(report: CompileReport, console: Console, *, verbose: bool) -> None:
    heading(console, digest.integer_phrase(report.verdict))
    state = "in float" if report.verdict.integer else "planned in float"
    for reason, names in digest.float_groups(report):
        shown = names if verbose else names[:NAMES_PER_REASON]
        more = f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else ""
        listed = ", ".join(words.shorten(name, 40) for name in shown)
        show(console, f"{len(names):,} {state}: {reason}")
        show(console, f"{listed}{more}", indent=4, style="dim")


def _print_cut(report: CompileReport, console: Console, *, verbose: bool) -> None:
    facts = cut.cut_facts(report)
    if facts is None:
        return
    heading(console, f"{cut.TITLE}: {cut.cut_sentence(facts)}")
    if not verbose:
        return
    rows = table(*cut.SPLIT_COLUMNS, right=cut.SPLIT_FIGURES)
    splits = cut.split_rows(facts)
    for row in splits:
        add_row(rows, *row)
    if splits:
        show(console, rows)
    for layer in facts.nodes:
        show(console, f"{layer.op_type} {words.shorten(layer.name, 60)} stays in float", style="dim")


def _print_instructions(report: CompileReport, console: Console, *, verbose: bool) -> None:
    runs = report.verdict.emulated
    if not runs:
        return
    heading(console, instructions.TITLE)
    rows = table(*instructions.BOARD_COLUMNS, right=instructions.FIGURES)
    for run in runs:
        for row in instructions.board_rows(run):
            add_row(rows, *row)
    show(console, rows)
    show(console, instructions.MEANING, style="dim")
    for line in (line for run in runs for line in instructions.footnotes(run)):
        show(console, line, style="dim")
    nodes = runs[0].nodes if verbose else runs[0].nodes[:COSTLY_NODES]
    if nodes:
        heading(console, f"Instructions by node on {runs[0].board} (emulated), the most first")
        rows = table("node", "op", "before", "after", right=("before", "after"))
        for node in nodes:
            before, after = instructions.node_phrase(node).split(" -> ")
            add_row(rows, words.shorten(node.name, 50), node.op_type, before, after)
        show(console, rows)


def _print_worst(report: CompileReport, console: Console, *, limit: int | None) -> None:
    ranked = digest.worst_layers(report)
    layers = ranked[:limit]
    if not layers:
        return
    which = "All layers" if len(layers) == len(ranked) else f"Worst {len(layers)} of {len(ranked)} layers"
    heading(console, f"{which} by SQNR in dB (bar: noise power, against the worst)")
    wide = console.width >= WIDE
    columns = ("layer", "op", "dB", "noise", "", "cause") if wide else ("layer", "dB", "", "cause")
    rows = table(*columns, right=("dB", "noise"))
    worst = words.noise_share(layers[0].sqnr_db or 0.0)
    causes = max(len("cause"), *(len(layer.cause) for layer in layers))
    room = console.width - _FIXED_WIDTH - min(causes, 24) - (_WIDE_WIDTH if wide else 0)
    full = "#" if console.options.ascii_only else "\u2588"
    for layer in layers:
        cells = _layer_cells(layer, worst, max(12, min(room, 60)), full)
        add_row(rows, *(cells if wide else [cells[0], cells[2], *cells[4:]]))
    show(console, rows)


def _layer_cells(layer: LayerReport, worst: float, width: int, full: str) -> list[Text]:
    noise = words.noise_share(layer.sqnr_db or 0.0)
    length = max(1, round(BAR_WIDTH * noise / worst)) if noise else 0
    return [
        Text(words.shorten(layer.name, width), no_wrap=True),
        Text(words.shorten(layer.op_type, _OP_WIDTH), no_wrap=True),
        Text(words.figure(layer.sqnr_db, "dB").removesuffix(" dB")),
        Text(words.percent(noise)),
        Text(full * length, no_wrap=True),
        Text(words.printable(layer.cause)),
    ]


def _print_damages(report: CompileReport, console: Console) -> None:
    if not report.damages:
        return
    heading(console, "Damage: what the outputs gain when one layer alone gets 8-bit weights")
    rows = table("layer", "bits", "gain", "cause", "action", right=("bits", "gain"))
    for damage in report.damages:
        gain = f"{damage.damage_db:.2f} dB"
        add_row(rows, words.shorten(damage.name, 30), str(damage.bits), gain, damage.cause, damage.action)
    show(console, rows)


def _print_repairs(report: CompileReport, console: Console) -> None:
    if not report.repairs:
        return
    heading(console, "Repairs, in order")
    for step in report.repairs:
        names = ", ".join(words.shorten(name, 40) for name in step.layers[:NAMES_PER_REASON])
        rest = len(step.layers) - NAMES_PER_REASON
        more = f" and {rest:,} more" if rest > 0 else ""
        show(console, f"{step.action} {names}{more}: {step.outcome}")


def _print_search(report: CompileReport, console: Console, *, verbose: bool) -> None:
    if report.search is None:
        return
    heading(console, "Search")
    show(console, search.search_line(report.search))
    if verbose:
        rows = table(*search.COLUMNS, right=search.FIGURES)
        for stage in report.search.stages:
            add_row(rows, *search.stage_row(stage))
        show(console, rows)


def _print_notes(report: CompileReport, console: Console) -> None:
    notes = digest.notes(report)
    if notes:
        heading(console, "Notes")
    for note in notes:
        show(console, note)


def _print_passes(report: CompileReport, console: Console) -> None:
    heading(console, "Passes")
    rows = table("pass", "changed", "seconds", "left alone", "figures", right=("seconds", "left alone"))
    for entry in report.passes:
        figures = ", ".join(f"{m.name} {words.figure(m.value, m.unit)}" for m in entry.metrics)
        changed = "yes" if entry.changed else "no"
        add_row(rows, entry.name, changed, f"{entry.seconds:.2f}", str(len(entry.skipped)), figures)
    show(console, rows)
    for entry in report.passes:
        for skip in entry.skipped:
            line = f"{entry.name} left {words.shorten(skip.tensor, 60)} alone: {skip.reason}"
            show(console, line, style="dim")
