"""The cut of -O2 in every form of a report: which nodes stayed in float, what was predicted, what was measured."""

from __future__ import annotations

import re

from qcompiler.report import cut, document
from qcompiler.report.html import render_html
from tests.report.builder import make_report, placed_report
from tests.report.test_terminal import text_of


def section_of(page: str) -> str:
    return page[page.index('id="placement"') :].split("<h2", 1)[0]


def test_the_outcome_is_one_line_of_the_summary():
    shown = " ".join(text_of(placed_report()).split())
    assert "Measured placement: 4 nodes in float (2 Conv, 1 Relu, 1 MaxPool), 8.9 % faster (predicted 7.1 %)" in shown
    assert "1 convolution with aligned input channels, 0.917x of the latency before" in shown
    assert "off by" not in shown


def test_without_a_gain_the_line_says_so():
    shown = " ".join(text_of(placed_report(kept=False)).split())
    assert "Measured placement: all integers: nothing that was tried is faster" in shown


def test_every_split_that_was_timed_is_listed():
    shown = text_of(placed_report(), verbose=True)
    assert re.search(r"1\s+640 us\s+710 us\s+-9.9 %\s+1.004x\s+no", shown)
    assert re.search(r"2\s+655 us\s+642 us\s+\+2.0 %\s+0.911x\s+yes", shown)
    assert "conv1 stays in float" in shown


def test_nodes_are_grouped_by_operator_the_most_frequent_first():
    facts = cut.cut_facts(placed_report())
    assert [(op, len(names)) for op, names in cut.by_operator(facts)] == [("Conv", 2), ("MaxPool", 1), ("Relu", 1)]


def test_a_split_without_a_time_is_listed_too():
    facts = cut.CutFacts(nodes=(), figures={"measured latency ratio of split 1": float("inf")}, aligned=())
    assert cut.split_rows(facts) == [("1", "-", "-", "-", "infx", "no")]


def test_the_page_has_a_section_and_a_link_to_it():
    page = render_html(placed_report())
    assert '<a href="#placement">' in page
    section = section_of(page)
    assert "+2.0 %" in section
    assert "0.911x" in section
    for layer in placed_report().layers[:4]:
        assert f"<code>{layer.name}</code>" in section
    assert f"<code>{placed_report().layers[5].name}</code>" not in section


def test_hostile_names_stay_text():
    assert "<script>" not in section_of(render_html(placed_report(40, hostile=True)))


def test_a_report_without_it_is_as_it_was():
    assert cut.cut_facts(make_report()) is None
    assert "Measured placement" not in text_of(make_report())
    assert 'id="placement"' not in render_html(make_report())


def test_its_figures_differ_between_runs_and_so_are_measured():
    made = document.to_document(placed_report())
    entry = next(p for p in made["passes"] if p["name"] == cut.PASS)
    assert all(metric["measured"] for metric in entry["metrics"])
    values = next(p for p in made["measured"]["passes"] if p["name"] == cut.PASS)["values"]
    assert len(values) == len(entry["metrics"])
