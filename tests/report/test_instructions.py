"""Instructions (emulated) in every form of a report: counts, by board and by node, and never a time."""

from __future__ import annotations

import dataclasses
import re

import pytest

from qcompiler.counts import EmulatedOutput
from qcompiler.report import document, instructions
from qcompiler.report.html import render_html
from tests.report.builder import emulated_report, make_report
from tests.report.test_terminal import text_of


@pytest.mark.parametrize(
    ("number", "expected"),
    [(None, "-"), (0, "0"), (999, "999"), (1000, "1.00 k"), (38_700, "38.7 k"), (3_874_000, "3.87 M"), (1e9, "1.00 G")],
)
def test_a_count_has_three_figures(number, expected):
    assert instructions.count_text(number) == expected


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([], "not compared"),
        ([("identical", 0.0)], "identical bit for bit"),
        ([("identical", 0.0), ("float rounding", 2e-7)], "float rounding, at most 2e-07 of the largest value"),
        ([("differs", 0.5), ("requantized float", 0.01)], "differs, at most 0.5 of the largest value"),
    ],
)
def test_the_worst_agreement_is_told(outputs, expected):
    run = emulated_report(2).verdict.emulated[0]
    made = tuple(EmulatedOutput(name="y", agreement=a, max_relative=m) for a, m in outputs)
    assert instructions.agreement_phrase(dataclasses.replace(run, outputs=made)) == expected


def test_the_terminal_shows_boards_and_nodes_without_a_time():
    shown = text_of(emulated_report())
    section = shown[shown.index(instructions.TITLE) : shown.index("by SQNR")]
    assert re.search(r"cortex-a76\s+original\s+129 M\s+0\s+0\s+0\s+88.0 M", section)
    assert re.search(r"result\s+52.7 M\s+0.408x\s+22.0 M\s+0\s+0\s+0", section)
    assert "outputs on cortex-a72: float rounding, at most 3.1e-07" in section
    assert "Instructions by node on cortex-a76 (emulated)" in section
    assert "conv1" in text_of(emulated_report(), verbose=True)[shown.index(instructions.TITLE) :]
    assert not re.search(r"\d (ms|us|s)\b", section)


def test_a_layer_shows_its_own_on_every_board():
    shown = text_of(emulated_report(), 120, layer="relu1")
    assert re.search(r"instructions \(emulated\) on cortex-a76\s+140 k -> 39.0 k", shown)
    assert "instructions (emulated) on cortex-a72" in shown
    assert re.search(r"on cortex-a76\s+- -> 24.0 k", text_of(emulated_report(), 120, layer="conv1"))


def test_the_page_shows_them_and_links_to_them():
    page = render_html(emulated_report())
    assert '<a href="#instructions">' in page
    assert f'<h2 id="instructions">{instructions.TITLE}</h2>' in page
    assert "Instructions (emulated) by node on cortex-a76" in page
    assert "52.7 M" in page


def test_a_report_without_them_is_as_it_was():
    made = document.to_document(make_report())
    assert "emulated" not in made["measured"]
    assert "emulated" not in made["verdict"]
    assert "emulated" not in text_of(make_report())
    assert 'id="instructions"' not in render_html(make_report())


def test_they_differ_between_runs_and_so_are_measured():
    made = document.to_document(emulated_report())
    assert [run["board"] for run in made["measured"]["emulated"]] == ["cortex-a76", "cortex-a72"]
    assert made["measured"]["emulated"][0]["result"]["dot"] == 22_000_000
    made["measured"]["emulated"][0]["result"]["min_ms"] = 1.0
    with pytest.raises(document.InputError, match="does not follow"):
        document.validate(made)
