"""The report in a terminal: readable at 80 columns, plain where there is no color, deaf to hostile names."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from qcompiler.errors import UsageError
from qcompiler.records import CompileReport
from qcompiler.report import digest
from qcompiler.report.terminal import print_report
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
    "hostile": make_report(60, hostile=True),
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


def text_of(report: CompileReport, width: int = 80, encoding: str = "utf-8", **options) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    print_report(report, Console(file=stream, width=width), **options)
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_no_line_is_wider_than_the_terminal_and_none_is_an_escape(report, width, verbose):
    shown = text_of(report, width, verbose=verbose)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "\x1b" not in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
def test_an_ascii_terminal_is_enough(report):
    assert text_of(report, encoding="ascii", verbose=True).isascii()


@pytest.mark.parametrize(
    ("report", "first"),
    [
        (make_report(), "OK  squeezenet1.1.onnx for arm:cortex-a76: written; top1 64.84%"),
        (unverified_report(), "OK, ACCURACY NOT VERIFIED  squeezenet1.1.onnx"),
        (missed_report(), "REJECTED  squeezenet1.1.onnx for arm:cortex-a76: the result was not accepted"),
        (
            failed_report(),
            "REJECTED  squeezenet1.1.onnx for arm:cortex-a76: the result was not accepted: ONNX",
        ),
    ],
)
def test_the_verdict_comes_first(report, first):
    assert text_of(report, 120).startswith(first)


def test_one_screen_tells_what_matters():
    shown = text_of(make_report())
    for part in (
        "held   latency ratio",
        "4.95 MB -> 1.30 MB (0.26x)",
        "12.3 ms -> 5.72 ms at best (0.46x +- 0.01)",
        "ONNX Runtime on x86-64, not executed on arm",
        "16 of 19 compute nodes run in integers",
        "2 in float: no integer compute follows",
        "Worst 10 of 27 layers by SQNR",
        "/features/fire6/expand/1x1/Conv   32.2",
        "return to float",
        "calibrate: 2 ranges were widened",
    ):
        assert part in shown, part


def test_missed_and_unmeasured_floors_are_named_in_words():
    assert "MISSED  agreement of 'logits'" in text_of(missed_report())
    assert "worst output: logits" in text_of(missed_report())
    assert "not measured  latency ratio" in text_of(unverified_report())


def test_an_unmeasured_latency_has_its_reason_and_no_figure():
    shown = text_of(unverified_report())
    assert "not measured: this machine is not the target" in shown
    assert " ms" not in shown


def test_the_noisiest_layer_has_the_longest_bar():
    lines = [line for line in text_of(make_report(), encoding="ascii").splitlines() if "###" in line]
    lengths = [line.count("#") for line in lines]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 12


def test_names_are_shown_as_they_are_not_as_markup():
    report = make_report(8, hostile=True)
    shown = text_of(report, 120, verbose=True)
    assert "[red]bold[/red] | `tick` \\x1b[31m" in shown
    assert "\\u2028line\\u2029separator\\nbreak" in shown
    assert HOSTILE in shown


def test_floats_that_the_runtime_added_are_explained():
    report = make_report()
    integer = dataclasses.replace(report.verdict.integer, float_nodes=("fused_1", "conv1"))
    shown = text_of(dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, integer=integer)))
    assert "made by the runtime's own optimizer" in shown
    assert "planned in integers, but the runtime kept it in float" in shown


def test_layer_view_shows_everything_known_and_nothing_else():
    shown = text_of(make_report(), layer="conv1")
    for part in (
        "conv1 (Conv)",
        "decided by   place, calibrate",
        "clip         0 .. 12.58",
        "204 kB -> 52.3 kB",
    ):
        assert part in shown, part
    assert "Floors" not in shown
    assert text_of(make_report(), layer="conv1_out") == shown


def test_pass_view_shows_options_figures_and_skips():
    shown = text_of(make_report(), pass_name="calibrate")
    assert "option method  mse" in shown
    assert "812.5 ms" in shown or "812 ms" in shown
    assert "Left alone (3)" in text_of(make_report(), pass_name="place")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "conv2"}, "no layer 'conv2'; closest: 'conv1'"),
        ({"layer": "FIRE3"}, "closest: '/features/fire3"),
        ({"layer": "zzz"}, "no layer 'zzz'; it has: 'conv1'"),
        ({"pass_name": "calibrat"}, "no pass 'calibrat'; closest: 'calibrate'"),
    ],
)
def test_an_unknown_name_is_a_usage_error_with_the_closest_names(options, message):
    with pytest.raises(UsageError, match="the report has no") as caught:
        text_of(make_report(), **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        ("complete", "complete; 1 of 2 searches gained; 21.2 dB -> 24.8 dB on acceptance"),
        ("time", "the time was up: best verified result so far; 1 of 2 searches gained"),
        ("memory", "the memory limit was reached: best verified result so far; 1 of 2"),
        ("interrupted", "interrupted: best verified result so far; 1 of 2 searches gained"),
    ],
)
def test_a_search_is_one_line_and_its_stages_are_for_who_asks(ended, line):
    report = searched_report(ended)
    shown = text_of(report, 200)
    assert line in shown
    assert "314 s; 17 parts of an earlier search reused" in shown
    assert "search: not run: fine-search" in shown
    assert "clip-search" not in shown
    assert "failed: out of memory at" in text_of(report, 200, verbose=True)
    assert "Search" not in text_of(make_report())


def test_no_result_is_called_verified_that_is_not():
    report = searched_report("time")
    first = dataclasses.replace(report.search.stages[0], outcome="floor missed")
    search = dataclasses.replace(report.search, stages=(first,))
    shown = text_of(dataclasses.replace(report, search=search), 200)
    assert "verified result so far" not in shown
    assert "\n  time; 12 s" in shown


def test_what_the_bytes_are_and_what_loading_takes():
    text = " ".join(text_of(make_report(), width=120).split())
    assert "weights below 8 bits 1.15 MB, graph 100 kB, scales 51.6 kB" in text
    assert "float weights 0" not in text
    assert "24.0 -> 79.2 ms (3.30x), fastest of a few" in text
    assert "35.2 MB -> 23.6 MB (0.67x, peak)" in text


def test_weights_below_8_bits_are_said_with_the_damage_that_they_do():
    report = narrow_report()
    shown = text_of(report, 100)
    assert "weights  1 to 4 bits, 2.98 on average" in shown.replace("  " * 3, "  ").replace("weights    ", "weights  ")
    lines = shown[shown.index("Damage: ") :].splitlines()
    assert [word in lines[2] for word in (report.damages[0].name, "6.10 dB", "rounding", "3 -> 4 bits")] == [True] * 4
    plain = text_of(make_report(), 100)
    assert "Damage" not in plain
    assert "on average" not in plain


def test_one_width_of_all_weights_is_said_without_a_mean():
    report = narrow_report()
    same = tuple(dataclasses.replace(layer, weight_bits=3) for layer in report.layers)
    assert digest.widths_phrase(dataclasses.replace(report, layers=same)) == "3 bits"
    assert digest.widths_phrase(dataclasses.replace(report, layers=())) == ""
