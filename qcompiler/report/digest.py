"""What a report says in a few words: the verdict in a sentence, key figures, what stayed in float."""

from __future__ import annotations

from typing import Literal

from qcompiler.records import CompileReport, Floor, LatencyComparison, LayerReport, MetricComparison, Verdict
from qcompiler.report.words import by_kind, bytes_text, count, figure, noise_share, printable, share, shorten

_FLOAT = ("float", "weight_only")
_PLANNED_NOT_RUN = "planned in integers, but the runtime kept it in float"

Status = Literal["held", "not verified", "missed", "failed"]
HEADLINES: dict[Status, str] = {
    "held": "OK",
    "not verified": "OK, ACCURACY NOT VERIFIED",
    "missed": "REJECTED",
    "failed": "REJECTED",
}


def result_bytes(report: CompileReport) -> int | None:
    """Return the size on disk of ``model.onnx`` with its external data; None where nothing was written."""
    sizes = [size for name, size in report.verdict.file_bytes.items() if name.startswith("model.onnx")]
    return sum(sizes) if sizes else None


def written_files(verdict: Verdict) -> dict[str, int]:
    """Return file name -> bytes of what was written; the original's own size is left out."""
    return {name: size for name, size in verdict.file_bytes.items() if name != "original"}


def size_ratio(report: CompileReport) -> float | None:
    """Return the size of the result over that of the original, or None where either is unknown."""
    after = result_bytes(report)
    return after / report.model.file_bytes if after is not None and report.model.file_bytes else None


def status(verdict: Verdict) -> Status:
    """Return how the gate ended."""
    if verdict.failure or not verdict.loaded:
        return "failed"
    if not verdict.held:
        return "missed"
    return "held" if verdict.accuracy_verified else "not verified"


def verdict_sentence(report: CompileReport) -> str:
    """Return the verdict in one plain sentence: what was written, how good, fast, small, or what failed."""
    verdict = report.verdict
    subject = f"{shorten(report.model.file_name, 80)} for {printable(report.target)}"
    if status(verdict) == "failed":
        why = printable(verdict.failure) or "the written file was not loaded"
        return f"{subject}: the result was not accepted: {why.rstrip('.')}."
    if verdict.missed:
        first, more = verdict.missed[0], len(verdict.missed) - 1
        tail = f" ({more} more missed)" if more else ""
        return f"{subject}: the result was not accepted: {floor_sentence(first)}{tail}."
    facts = [quality_phrase(verdict), speed_phrase(verdict), size_phrase(report)]
    return f"{subject}: written; {'; '.join(facts)}."


def floor_sentence(floor: Floor) -> str:
    """Return what was reached and asked, such as ``agreement is 91.0% where at least 97.0% was asked``."""
    limit = f"{floor.direction} {figure(floor.limit, floor.unit)}"
    asked = f"{limit} was asked" if floor.asked_by == "user" else f"the default is {limit}"
    reached = "was not measured" if floor.reached is None else f"is {figure(floor.reached, floor.unit)}"
    why = f" ({printable(floor.detail)})" if floor.detail and not floor.held else ""
    return f"{printable(floor.name)} {reached} where {asked}{why}"


def floor_state(floor: Floor) -> str:
    """Return ``held``, ``MISSED`` or ``not measured``."""
    return {True: "held", False: "MISSED", None: "not measured"}[floor.held]


def metric_phrase(metric: MetricComparison) -> str:
    """Return the user's metric on the result, with the original's in brackets."""
    name, unit = printable(metric.name), "%" if metric.name == "top1" else ""
    digits = "{:.2f}" if unit else "{:.4g}"
    return f"{name} {digits.format(metric.result)}{unit} (original {digits.format(metric.original)}{unit})"


def quality_phrase(verdict: Verdict) -> str:
    """Return how close the result is to the original, and on which samples."""
    parts = [metric_phrase(verdict.metric)] if verdict.metric else []
    agreements = [o.agreement for o in verdict.outputs if o.agreement is not None]
    if agreements:
        parts.append(f"{100 * min(agreements):.1f}% same answers")
    noisy = [o.sqnr_db for o in verdict.outputs if o.sqnr_db is not None]
    if noisy:
        parts.append(figure(min(noisy), "dB"))
    elif verdict.outputs:
        parts.append("outputs identical")
    where = count(verdict.samples, verdict.data.removesuffix("s"))
    text = f"{', '.join(parts) or 'outputs not compared'} on {where}"
    return text if verdict.accuracy_verified else f"{text} (accuracy not verified)"


def speed_phrase(verdict: Verdict) -> str:
    """Return how fast the result is against the original, or that it was not measured."""
    latency = verdict.latency
    if latency is None:
        return "latency not measured"
    if latency.ratio_min <= 1:
        return f"{1 / latency.ratio_min:.2f}x faster" if latency.ratio_min > 0 else "faster"
    return f"{latency.ratio_min:.2f}x the latency (slower)"


def size_phrase(report: CompileReport) -> str:
    """Return how small the result is against the original."""
    ratio = size_ratio(report)
    if ratio is None:
        return "size unknown"
    return f"{1 / ratio:.2f}x smaller" if ratio <= 1 else f"{ratio:.2f}x the size (larger)"


def latency_phrases(latency: LatencyComparison) -> tuple[str, str, str]:
    """Return the best times, the median times, and how they were measured."""
    before, after = latency.original, latency.result
    return (
        f"{before.min_ms:.3g} ms -> {after.min_ms:.3g} ms at best ({latency.ratio_min:.2f}x +- {latency.spread:.2f})",
        f"{before.median_ms:.3g} ms -> {after.median_ms:.3g} ms in the median ({latency.ratio_median:.2f}x)",
        f"{count(after.threads, 'thread')}, {count(after.runs, 'run')}, interleaved; {printable(after.machine)}",
    )


def worst_layers(report: CompileReport, limit: int | None = None) -> list[LayerReport]:
    """Return the layers with a known SQNR, the noisiest first."""
    known = [(layer.sqnr_db, i, layer) for i, layer in enumerate(report.layers) if layer.sqnr_db is not None]
    known.sort(key=lambda item: (-noise_share(item[0]), item[1]))
    return [layer for _, _, layer in known[:limit]]


def float_groups(report: CompileReport) -> list[tuple[str, list[str]]]:
    """Return why compute nodes stayed in float: (reason, names), the largest group first.

    The names are the runtime's own where the optimized graph was read, otherwise the plan's.
    """
    layers = {layer.name: layer for layer in report.layers}
    integer = report.verdict.integer
    names = integer.float_nodes if integer else [n for n, v in layers.items() if v.precision in _FLOAT]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_float_reason(layers.get(name)), []).append(name)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def _float_reason(layer: LayerReport | None) -> str:
    if layer is None:
        return "made by the runtime's own optimizer"
    if layer.precision in ("integer", "move"):
        return _PLANNED_NOT_RUN
    return layer.reason or "no reason recorded"


def integer_phrase(verdict: Verdict) -> str:
    """Return ``N of M compute nodes run in integers``, or that this was not read."""
    integer = verdict.integer
    if integer is None:
        return "What runs in integers was not read from the runtime"
    if not integer.compute_nodes:
        return "The runtime's graph holds no compute node"
    macs = share(integer.integer_macs, integer.macs)
    nodes = f"{integer.integer_nodes} of {integer.compute_nodes} compute nodes run in integers"
    return nodes if macs == "-" else f"{nodes} ({macs} of the multiply-accumulates)"


def stored_phrase(verdict: Verdict) -> str:
    """Return what the bytes of the model are spent on: ``weights below 8 bits 618.0 KB, ...``."""
    return ", ".join(f"{part} {bytes_text(size)}" for part, size in verdict.stored_bytes.items() if size > 0)


FULL_BITS = 8
"""Where all weights have this width, reports do without it."""
DAMAGE = "Why accuracy fell: the layers below 8 bits that cost most, by trials on samples that the gate does not use"


def widths_phrase(report: CompileReport) -> str:
    """Return the widths of weights, such as ``1 to 4 bits, 2.98 on average``; "" where none is below 8 bits."""
    found = [layer.weight_bits for layer in report.layers if layer.weight_bits is not None]
    if not found or min(found) >= FULL_BITS:
        return ""
    low, high = min(found), max(found)
    if low == high:
        return count(low, "bit")
    mean = "" if report.frontier is None else f", {report.frontier.chosen.mean_bits:.2f} on average"
    return f"{low} to {high} bits{mean}"


def load_phrases(verdict: Verdict) -> dict[str, str]:
    """Return what loading the result takes against the original: "load" and "load memory", as far as measured."""
    original, result = verdict.loads.get("original"), verdict.loads.get("result")
    if original is None or result is None:
        return {}
    ratio = f" ({result.ms / original.ms:.2f}x)" if original.ms > 0 else ""
    found = {"load": f"{original.ms:.1f} -> {result.ms:.1f} ms{ratio}, fastest of a few"}
    if original.peak_bytes and result.peak_bytes:
        peaks = f"{bytes_text(original.peak_bytes)} -> {bytes_text(result.peak_bytes)}"
        found["load memory"] = f"{peaks} ({result.peak_bytes / original.peak_bytes:.2f}x, peak)"
    return found


def flips_phrase(metric: MetricComparison) -> str:
    """Return how many answers became wrong or right, or "" where that was not counted."""
    if metric.lost is None or metric.gained is None:
        return ""
    return f"; {count(metric.lost, 'answer')} lost, {metric.gained:,} gained of {metric.samples:,}"


def key_figures(report: CompileReport) -> list[tuple[str, str, str]]:
    """Return the figures that open a page: (what, figure, detail)."""
    verdict = report.verdict
    ratio, after = size_ratio(report), result_bytes(report)
    size = f"{bytes_text(report.model.file_bytes)} -> {bytes_text(after)}" if after is not None else "no result kept"
    latency, integer = verdict.latency, verdict.integer
    speed = latency_phrases(latency)[0].split(" (")[0] if latency else verdict.latency_unavailable
    macs = f"{share(integer.integer_macs, integer.macs)} of the multiply-accumulates" if integer else "not read"
    nodes = f"{integer.integer_nodes} of {integer.compute_nodes}" if integer else "-"
    return [
        *_quality_figures(verdict),
        ("Latency", f"{latency.ratio_min:.2f}x" if latency else "not measured", printable(speed)),
        ("File", f"{ratio:.2f}x" if ratio is not None else "-", size),
        ("Compute in integers", nodes, macs),
    ]


def _quality_figures(verdict: Verdict) -> list[tuple[str, str, str]]:
    found = []
    where = count(verdict.samples, verdict.data.removesuffix("s"))
    metric = verdict.metric
    if metric is not None:
        value, original = (figure(v, "%" if metric.name == "top1" else "") for v in (metric.result, metric.original))
        found.append((shorten(metric.name, 24), value, f"original {original}"))
    agreements = [o.agreement for o in verdict.outputs if o.agreement is not None]
    if agreements:
        found.append(("Same answers", figure(100 * min(agreements), "%"), f"on {where}"))
    noisy = sorted((o.sqnr_db, o.name) for o in verdict.outputs if o.sqnr_db is not None)
    if noisy:
        found.append(("Output SQNR", figure(noisy[0][0], "dB"), f"worst output, {shorten(noisy[0][1], 24)}"))
    elif verdict.outputs:
        found.append(("Output SQNR", "identical", f"on {where}"))
    return found


def notes(report: CompileReport) -> list[str]:
    """Return every note of the model, the data, the gate, the passes and the search, in that order."""
    found = [*report.model.notes, *(report.data.notes if report.data else ()), *report.verdict.notes]
    found += [f"{entry.name}: {note}" for entry in report.passes for note in entry.notes]
    return found + [f"search: {note}" for note in (report.search.notes if report.search else ())]


def origin(report: CompileReport) -> dict[str, str]:
    """Return where the result comes from: target, model, data, versions, machine, command, times, choices."""
    model, data = report.model, report.data
    facts = {
        "target": f"{report.target} ({report.target_summary})",
        "model": f"{model.file_name}, {count(model.nodes, 'node')}, {count(model.parameters, 'parameter')}, "
        f"opset {model.opset}, by {model.producer or 'an unnamed producer'}",
        "SHA-256": model.sha256,
        "data": f"{data.source}, fingerprint {data.fingerprint}" if data else "none",
        "versions": ", ".join(f"{k} {v}" for k, v in report.versions.items()),
        "machine": report.machine or "not recorded",
        "command": " ".join(report.command) or "called from Python",
        "stages": ", ".join(f"{k} {v:.2f} s" for k, v in report.stage_seconds.items()) or "not timed",
    }
    facts.update({f"choice {key}": value for key, value in by_kind(report.choices).items()})
    return facts
