"""``report.html``: the whole report as one file that needs no network and trusts no name in it.

Every text is escaped by the template engine; the data of the plots is JSON in which ``<``, ``>`` and ``&``
are escaped; a Content-Security-Policy allows the page's own scripts and styles by hash and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.records import CompileReport, FrontierPoint, LayerReport, Skip, TensorHistogram
from qcompiler.report import cut, digest, instructions, search, words
from qcompiler.report.card import CARD_GROUPS
from qcompiler.report.document import write_text

if TYPE_CHECKING:
    import jinja2

FILE_NAME = "report.html"
MAX_BYTES = 1_500_000
NAME_WIDTH = 160
TEXT_WIDTH = 1200
_BAR_PIXELS = 40
_NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a page shows; what it leaves out is in ``report.json``, and the page says so."""

    layers: int
    histograms: int
    skips: int


_STEPS = (
    Limits(_NO_LIMIT, _NO_LIMIT, _NO_LIMIT),
    Limits(1000, 100, 1000),
    Limits(400, 40, 400),
    Limits(100, 10, 100),
    Limits(20, 2, 20),
)


def write_html(report: CompileReport, folder: Path) -> Path:
    """Write ``report.html`` into a folder and return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_text(folder / FILE_NAME, render_html(report))


def render_html(report: CompileReport) -> str:
    """Return the page; a report too large for ``MAX_BYTES`` shows its worst layers, and says so."""
    page = ""
    for limits in _STEPS:
        page = _render(report, limits)
        if len(page.encode("utf-8")) <= MAX_BYTES:
            break
    return page


@functools.cache
def environment() -> jinja2.Environment:
    """Return the template engine: autoescape on, undefined names refused, the shared phrases as filters.

    One engine for all pages: compiling a template takes longer than filling it.
    """
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("qcompiler.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        name=lambda value: words.shorten(str(value), NAME_WIDTH),
        text=lambda value: words.shorten(str(value), TEXT_WIDTH),
        constant_bytes=lambda size: words.bytes_text(size) if size else "-",
        figure=words.figure,
        output_db=words.output_db,
        floor_state=digest.floor_state,
        span=words.span,
    )
    return made


def page_assets(scripts: Sequence[str]) -> dict[str, Any]:
    """Return style, scripts and the policy that allows exactly these, as template variables."""
    from markupsafe import Markup

    style = _asset("templates/page.css")
    texts = [_asset(path) for path in scripts]
    policy = (
        f"default-src 'none'; script-src {_hashes(texts) or chr(39) + 'none' + chr(39)}; "
        f"style-src {_hashes([style])}; base-uri 'none'; form-action 'none'"
    )
    return {"style": Markup(style), "scripts": [Markup(text) for text in texts], "policy": policy}


def embed(value: object) -> str:
    """Return a value as ASCII JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _asset(path: str) -> str:
    text = resources.files("qcompiler.report").joinpath(path).read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("//# sourceMappingURL="))
    return "\n".join(lines)


def _hashes(texts: Iterable[str]) -> str:
    digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(d).decode('ascii')}'" for d in digests)


SCRIPTS = ("vendor/chart.umd.min.js", "vendor/sortable.min.js", "templates/report.js")


def _render(report: CompileReport, limits: Limits) -> str:
    from markupsafe import Markup

    rows = _layer_rows(report, limits.layers)
    histograms = _worst_histograms(report, limits.histograms)
    skips = [(entry.name, skip) for entry in report.passes for skip in entry.skipped]
    has = {
        "error": any(row["layer"].sqnr_db is not None for row in rows),
        "bytes": any(row["layer"].bytes_before for row in rows),
        "time": bool(report.layer_times),
        "bits": any(layer.weight_bits is not None and layer.weight_bits < digest.FULL_BITS for layer in report.layers),
    }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            **page_assets(SCRIPTS),
            **_verdict_parts(report),
            card=_card_groups(report),
            has=has,
            layers=rows,
            histograms=histograms,
            instructions=instructions,
            cut=cut,
            placed=cut.cut_facts(report),
            search=search,
            costly=report.verdict.emulated[0].nodes[: limits.layers] if report.verdict.emulated else (),
            skips=skips[: limits.skips],
            skip_count=len(skips),
            sections=_sections(report, skips),
            notes=digest.notes(report),
            origin={**digest.origin(report), **_recipe_facts(report)},
            data=Markup(embed(_plot_data(report, rows, histograms))),
        )
    )


def _verdict_parts(report: CompileReport) -> dict[str, Any]:
    verdict = report.verdict
    metric = verdict.metric
    return {
        "status": digest.status(verdict),
        "headline": digest.HEADLINES[digest.status(verdict)],
        "sentence": digest.verdict_sentence(report),
        "figures": digest.key_figures(report),
        "metric": digest.metric_phrase(metric) + digest.flips_phrase(metric) if metric else "",
        "integer": digest.integer_phrase(verdict),
        "storage": digest.stored_phrase(verdict),
        "damage_meaning": digest.DAMAGE,
        "load_phrases": digest.load_phrases(verdict),
        "float_groups": digest.float_groups(report),
    }


def _card_groups(report: CompileReport) -> dict[str, dict[str, str]]:
    """Return group -> field -> answer; a field outside the known groups is kept, under "Other"."""
    card = dict(report.card)
    groups = {group: {n: card.pop(n) for n in names if n in card} for group, names in CARD_GROUPS.items()}
    groups["Other"] = card
    return {group: fields for group, fields in groups.items() if fields}


def _layer_rows(report: CompileReport, limit: int) -> list[dict[str, Any]]:
    """Return the rows of the layer table, in graph order; the noisiest if there are more than ``limit``."""
    times = {time.name: time for time in report.layer_times}
    numbered = list(enumerate(report.layers, 1))
    if len(numbered) > limit:
        numbered = sorted(sorted(numbered, key=lambda item: -_noise(item[1]))[:limit])
    worst = max((_noise(layer) for _, layer in numbered), default=0.0)
    rows = []
    for number, layer in numbered:
        time = times.get(layer.name)
        bar = round(_BAR_PIXELS * _noise(layer) / worst, 1) if worst > 0 and _noise(layer) > 0 else 0
        rows.append(
            {
                "number": number,
                "layer": layer,
                "bar": bar,
                "before_us": time.before_us if time else None,
                "after_us": time.after_us if time else None,
            }
        )
    return rows


def _noise(layer: LayerReport) -> float:
    return -1.0 if layer.sqnr_db is None else words.noise_share(layer.sqnr_db)


def _worst_histograms(report: CompileReport, limit: int) -> list[TensorHistogram]:
    noise = {layer.output: _noise(layer) for layer in report.layers}
    return sorted(report.histograms, key=lambda h: -noise.get(h.name, -1.0))[:limit]


def _plot_data(
    report: CompileReport, rows: Sequence[dict[str, Any]], histograms: Sequence[TensorHistogram]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "layers": _plot_columns(rows),
        "histograms": [_plain(h) for h in histograms],
        "frontier": None,
    }
    if report.frontier is not None:
        points = [_point(p) for p in report.frontier.points]
        found["frontier"] = {"points": points, "chosen": _point(report.frontier.chosen)}
    return found


def _point(point: FrontierPoint) -> dict[str, Any]:
    return {"bytes": point.file_bytes, "bits": _short(point.mean_bits), "loss": _finite(point.loss) or 0.0}


def _plot_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    layers = [row["layer"] for row in rows]
    return {
        "number": [row["number"] for row in rows],
        "name": [words.shorten(layer.name, NAME_WIDTH) for layer in layers],
        "integer": [layer.runs_integer is not False and layer.precision != "float" for layer in layers],
        "sqnr_db": [_finite(layer.sqnr_db) for layer in layers],
        "bytes_before": [layer.bytes_before for layer in layers],
        "bytes_after": [layer.bytes_after for layer in layers],
        "before_us": [_finite(row["before_us"]) for row in rows],
        "after_us": [_finite(row["after_us"]) for row in rows],
    }


def _plain(histogram: TensorHistogram) -> dict[str, Any]:
    clip = histogram.clip
    drawn = clip is not None and all(math.isfinite(v) for v in clip)
    return {
        "low": _finite(histogram.low) or 0.0,
        "high": _finite(histogram.high) or 0.0,
        "counts": histogram.counts,
        "clip": [_short(v) for v in clip] if drawn and clip else None,
    }


def _finite(value: float | None) -> float | None:
    return _short(value) if value is not None and math.isfinite(value) else None


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _sections(report: CompileReport, skips: Sequence[tuple[str, Skip]]) -> list[tuple[str, str]]:
    present = {
        "card": ("Card", True),
        "floors": ("Floors", bool(report.verdict.floors)),
        "outputs": ("Outputs", True),
        "integers": ("Integers", True),
        "placement": ("Placement", cut.cut_facts(report) is not None),
        "storage": ("Storage", bool(report.verdict.stored_bytes or report.verdict.loads)),
        "instructions": ("Instructions", bool(report.verdict.emulated)),
        "plots": ("Plots", bool(report.layers)),
        "layers": ("Layers", bool(report.layers)),
        "damages": ("Damage", bool(report.damages)),
        "passes": ("Passes", True),
        "skips": ("Left alone", bool(skips)),
        "repairs": ("Repairs", bool(report.repairs)),
        "search": ("Search", report.search is not None),
        "notes": ("Notes", bool(digest.notes(report))),
        "origin": ("Origin", True),
    }
    return [(anchor, label) for anchor, (label, shown) in present.items() if shown]


def _recipe_facts(report: CompileReport) -> dict[str, str]:
    return {f"recipe {key}": json.dumps(value, default=str) for key, value in sorted(report.recipe.items())}
