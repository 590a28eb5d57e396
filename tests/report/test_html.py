"""report.html: self-contained, small enough, closed to the network and to hostile names, and complete."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from qcompiler.records import CompileReport
from qcompiler.report import html
from qcompiler.report.compare import comparison_html
from tests.report.builder import (
    HOSTILE,
    emulated_report,
    failed_report,
    make_report,
    missed_report,
    narrow_report,
    placed_report,
    searched_report,
    unverified_report,
)

REPORTS = {
    "verified": make_report(),
    "hostile": make_report(300, hostile=True),
    "failed": failed_report(),
    "emulated": emulated_report(),
    "emulated, hostile": emulated_report(40, hostile=True),
    "placed": placed_report(),
    "placed, hostile": placed_report(40, hostile=True),
    "searched": searched_report(),
    "searched, hostile": searched_report("interrupted", hostile=True),
    "missed": missed_report(),
    "narrow": narrow_report(),
    "narrow, hostile": narrow_report(40, hostile=True),
    "unverified": unverified_report(),
    "one layer": make_report(1),
    "no layer": make_report(0),
}


class Page(HTMLParser):
    """Collects what a browser would see: elements with attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.raw.append((*self._open, data))
        else:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(params=REPORTS.values(), ids=REPORTS.keys(), scope="module")
def report(request) -> CompileReport:
    return request.param


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(html.render_html(report))


def test_nothing_is_loaded_and_nothing_is_handled_inline(page):
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "link", "base", "form"), tag
        assert not [a for a in attributes if a.startswith("on") or a in ("src", "srcset", "style", "action")], tag
        assert (attributes.get("href") or "#").startswith("#")


def test_the_policy_allows_exactly_the_scripts_and_style_of_the_page(page):
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    directives = dict(part.strip().split(" ", 1) for part in policies[0].split(";"))
    assert directives["default-src"] == directives["base-uri"] == directives["form-action"] == "'none'"
    code = [text for tag, attributes, text in page.raw if tag == "script" and "type" not in attributes]
    style = [text for tag, _, text in page.raw if tag == "style"]
    assert directives["script-src"].split() == [_hash(text) for text in code]
    assert directives["style-src"].split() == [_hash(text) for text in style]
    assert "unsafe" not in policies[0]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_data_is_json_that_cannot_leave_its_element(page, report):
    found = [text for tag, attributes, text in page.raw if attributes.get("type") == "application/json"]
    assert len(found) == 1
    assert found[0].isascii()
    assert not re.search("[<>&]", found[0])
    data = json.loads(found[0])
    assert len(data["layers"]["name"]) == len(report.layers)
    assert len(data["histograms"]) == len(report.histograms)


def test_hostile_names_stay_text():
    page = Page(html.render_html(make_report(300, hostile=True)))
    clean = Page(html.render_html(make_report(300)))
    count = {tag: len(page.all(tag)) for tag in ("script", "style", "svg", "canvas", "b")}
    assert count == {tag: len(clean.all(tag)) for tag in count}
    assert HOSTILE in page.text
    assert "\u2028" not in page.text
    assert "\x1b" not in page.text


def test_hostile_text_everywhere_stays_text():
    report = make_report(4)
    poisoned = _poison(report)
    page, clean = Page(html.render_html(poisoned)), Page(html.render_html(report))
    assert len(page.all("script")) == len(clean.all("script"))
    assert not page.all("img")
    assert HOSTILE in page.text


def _poison(value):
    """Return a record in which every free text is hostile."""
    if dataclasses.is_dataclass(value):
        keep = ("precision", "direction", "asked_by", "data") if not isinstance(value, CompileReport) else ()
        changes = {f.name: _poison(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in keep}
        return dataclasses.replace(value, **changes)
    if isinstance(value, tuple):
        return tuple(_poison(v) for v in value)
    if isinstance(value, dict):
        return {f"{k}{HOSTILE}": _poison(v) for k, v in value.items()}
    return HOSTILE if isinstance(value, str) and value else value


def test_it_opens_with_the_verdict_and_then_the_card(page, report):
    text = page.text
    assert text.index("REJECTED" if not report.verdict.held else "OK") < text.index("Quantization card")
    positions = [text.index(field) for field in report.card]
    assert text.index("Quantization card") < min(positions)
    for answer in report.card.values():
        assert " ".join(answer.split()) in text or len(answer) > html.TEXT_WIDTH


def test_tables_are_accessible(page):
    tables = len(page.all("table"))
    assert tables == len(page.all("caption"))
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert all(canvas.get("aria-label") for canvas in page.all("canvas"))
    assert page.all("html") == [{"lang": "en"}]
    identifiers = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(identifiers) == len(set(identifiers))
    targets = [a["href"][1:] for a in page.all("a")]
    assert set(targets) <= set(identifiers)


def test_every_layer_pass_skip_and_floor_is_there():
    report = make_report()
    text = Page(html.render_html(report)).text
    for name in (
        *(layer.name for layer in report.layers),
        *(layer.reason for layer in report.layers),
        *(entry.name for entry in report.passes),
        *(skip.reason for entry in report.passes for skip in entry.skipped),
        *(floor.name for floor in report.verdict.floors),
        *(step.outcome for step in report.repairs),
        *report.verdict.notes,
        report.model.sha256,
    ):
        assert name in text, name


def test_missing_figures_are_not_shown_as_numbers():
    page = Page(html.render_html(unverified_report()))
    ids = {c["id"] for c in page.all("canvas")}
    assert "time-plot" not in ids
    assert "histogram-plot" not in ids
    assert "not measured" in page.text


@pytest.mark.parametrize("layers", [300, 6000])
def test_the_page_stays_below_its_limit(layers):
    text = html.render_html(make_report(layers, hostile=True))
    assert len(text.encode()) <= html.MAX_BYTES == 1_500_000
    said = "all are in report.json" in text
    assert said is (layers == 6000)


def test_endless_names_do_not_break_the_limit():
    report = make_report(400)
    layers = tuple(dataclasses.replace(v, name=v.name * 2000, reason="why " * 5000) for v in report.layers)
    text = html.render_html(dataclasses.replace(report, layers=layers))
    assert len(text.encode()) <= html.MAX_BYTES


def test_write_html_writes_the_page(tmp_path):
    path = html.write_html(make_report(3), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == html.render_html(make_report(3))


def test_the_comparison_page_is_as_closed():
    reports = [make_report(5, hostile=True), _poison(missed_report()), unverified_report()]
    page = Page(comparison_html(reports, ["a", 'b"><img src=x>', "c"]))
    assert not page.all("img")
    assert [a["href"] for a in page.all("a")] == [
        "a/report.html",
        "b%22%3E%3Cimg%20src%3Dx%3E/report.html",
        "c/report.html",
    ]
    assert len(page.all("script")) == 1
    assert len(page.all("table")) == len(page.all("caption")) == 2


def test_embed_escapes_what_ends_a_script():
    text = html.embed({"a": "</script><!--&\u2028\u2029"})
    assert json.loads(text) == {"a": "</script><!--&\u2028\u2029"}
    assert text == '{"a":"\\u003c/script\\u003e\\u003c!--\\u0026\\u2028\\u2029"}'


def test_a_search_has_a_section_with_its_stages():
    page = html.render_html(searched_report("time"))
    assert 'href="#search"' in page
    assert "the time was up: best verified result so far; 1 of 2 searches gained" in page
    assert all(text in page for text in ("first result", "clip-search", "24.8 dB", "failed: out of memory at"))
    assert 'id="search"' not in html.render_html(make_report())


def test_what_the_bytes_are_and_what_loading_takes():
    page = " ".join(Page(html.render_html(make_report())).words)
    text = " ".join(page.split())
    assert "weights below 8 bits 1.15 MB, graph 100 kB, scales 51.6 kB" in text
    assert "24.0 -> 79.2 ms (3.30x)" in text
    assert "Load memory : 35.2 MB" in text or "Load memory: 35.2 MB" in text
    assert "#storage" in {a.get("href") for a in Page(html.render_html(make_report())).all("a")}


def test_the_width_of_weights_is_a_column_where_some_are_below_a_byte():
    report = make_report()
    wide = tuple(dataclasses.replace(layer, weight_bits=8) for layer in report.layers)
    narrow = (dataclasses.replace(report.layers[0], weight_bits=3), *wide[1:])
    pages = [html.render_html(dataclasses.replace(report, layers=layers)) for layers in (wide, narrow)]
    tables = [page.partition('id="layers-table"')[2].partition("</table>")[0] for page in pages]
    assert ["Bits" in table for table in tables] == [False, True]
    assert ">3<" in tables[1]


def test_layers_below_8_bits_are_ranked_with_cause_and_action():
    page = html.render_html(narrow_report())
    assert '<h2 id="damages">' in page
    assert "Why accuracy fell: the layers below 8 bits that cost most" in page
    assert all(word in page for word in ("6.10 dB", "rounding of the weights", "3 -&gt; 4 bits"))
    assert '<h2 id="damages">' not in html.render_html(make_report())
