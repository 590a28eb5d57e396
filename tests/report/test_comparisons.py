"""Summaries for pull requests, several targets side by side, and the difference between two reports."""

from __future__ import annotations

import dataclasses
import io
import json

from rich.console import Console

from qcompiler.records import CompileReport
from qcompiler.report.compare import (
    comparison_document,
    print_comparison,
    verdict_columns,
    verdict_rows,
    write_comparison,
)
from qcompiler.report.diff import differences, flatten, measured_differences, print_diff
from qcompiler.report.summary import escape, markdown_summary, write_summary
from tests.report.builder import emulated_report, failed_report, make_report, missed_report, unverified_report


def three() -> list[CompileReport]:
    return [
        make_report(),
        dataclasses.replace(missed_report(), target="x86"),
        dataclasses.replace(unverified_report(), target="reference"),
    ]


def printed(function, *arguments, width: int = 80, **options) -> str:
    stream = io.StringIO()
    function(*arguments, Console(file=stream, width=width), **options)
    return stream.getvalue()


def changed(report: CompileReport, **changes) -> CompileReport:
    return dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, **changes))


# -- Markdown ------------------------------------------------------------------------------------------


def test_summary_has_a_verdict_table_and_one_section_per_target():
    text = markdown_summary(three())
    assert text.startswith("# qcompile: 1 of 3 targets rejected\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## arm:cortex-a76",
        "## x86",
        "## reference",
    ]
    assert "| x86 | REJECTED | 64.8% | 97.7% | 33.7 dB | 0.46x | 0.26x | 16 of 19 |" in text
    assert "| **MISSED** | agreement of 'logits' | 91.0% | at least 97.0% | default |" in text
    assert markdown_summary(three()[:1]).startswith("# qcompile: every floor held\n")


def test_summary_tables_have_equal_columns():
    for block in markdown_summary([make_report(12, hostile=True), failed_report()]).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_summary_shows_names_as_text():
    text = markdown_summary([make_report(4, hostile=True)])
    assert "<img" not in text
    assert "`tick`" not in text
    assert escape("a|b`c`<b>@you #1 [x](y)\n*") == (
        "a&#124;b&#96;c&#96;&#60;b&#62;&#64;you &#35;1 &#91;x&#93;(y)&#92;n&#42;"
    )


def test_summary_of_nothing_says_so(tmp_path):
    assert "Nothing was compiled" in markdown_summary([])
    assert write_summary(three(), tmp_path / "s.md").read_text() == markdown_summary(three())


# -- several targets -----------------------------------------------------------------------------------


def test_comparison_fits_80_columns_and_tells_more_at_120():
    narrow, wide = printed(print_comparison, three()), printed(print_comparison, three(), width=120)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "In integers" in wide
    assert "In integers" not in narrow
    assert "REJECTED" in narrow
    assert "not measured" in narrow


def test_comparison_document_keeps_times_apart(tmp_path):
    slower = dataclasses.replace(make_report().verdict.latency, ratio_min=0.9)
    left = comparison_document([make_report(), *three()[1:]])
    right = comparison_document([changed(make_report(), latency=slower), *three()[1:]])
    assert left.pop("measured") != right.pop("measured")
    assert left == right
    assert [t["target"] for t in left["targets"]] == ["arm:cortex-a76", "x86", "reference"]
    write_comparison(three(), tmp_path, ["a", "b", "c"])
    assert json.loads((tmp_path / "comparison.json").read_text())["schema"] == "qcompile.comparison/1"
    assert "b/report.html" in (tmp_path / "comparison.html").read_text()


def test_instructions_are_compared_where_they_were_counted(tmp_path):
    reports = [emulated_report(), dataclasses.replace(make_report(), target="openvino")]
    columns, rows = verdict_columns(reports), verdict_rows(reports)
    assert [dict(zip(columns, row, strict=True))["Instructions"] for row in rows] == ["0.41x", "not counted"]
    assert "Instructions" not in verdict_columns(three())
    narrow = printed(print_comparison, reports)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "0.41x" in narrow
    write_comparison(reports, tmp_path)
    arm, other = json.loads((tmp_path / "comparison.json").read_text())["measured"]["targets"]
    assert [run["board"] for run in arm["instructions"]] == ["cortex-a76", "cortex-a72"]
    assert arm["instructions"][0]["result"] == reports[0].verdict.emulated[0].result.total
    assert "instructions" not in other
    page = (tmp_path / "comparison.html").read_text()
    assert "0.41x" in page
    assert "not a speedup" in page
    assert "| Instructions |" in markdown_summary(reports)


# -- two reports ---------------------------------------------------------------------------------------


def test_equal_reports_differ_in_nothing():
    assert differences(make_report(), make_report()) == []
    assert printed(print_diff, make_report(), make_report()).startswith("Nothing differs")


def test_a_different_latency_alone_is_no_difference():
    report = make_report()
    latency = dataclasses.replace(report.verdict.latency, ratio_min=0.6)
    floor = dataclasses.replace(report.verdict.floors[-1], reached=0.6)
    other = changed(report, latency=latency, floors=(*report.verdict.floors[:-1], floor), memory_bytes={"result": 1})
    other = dataclasses.replace(other, command=("x",), machine="m", stage_seconds={})
    assert differences(report, other) == []
    assert {d.what for d in measured_differences(report, other)} >= {"latency", "latency ratio"}
    shown = printed(print_diff, report, other)
    assert shown.startswith("Nothing differs")
    assert "0.60x" in shown


def sections(left: CompileReport, right: CompileReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for difference in differences(left, right):
        found.setdefault(difference.section, []).append(difference.what)
    return found


def test_each_kind_of_difference_has_its_section():
    base = make_report()
    recipe = {**base.recipe, "seed": 7, "floors": {**base.recipe["floors"], "max_drop": 2.0}}
    assert sections(base, dataclasses.replace(base, recipe=recipe)) == {"recipe": ["floors.max_drop", "seed"]}
    assert sections(base, dataclasses.replace(base, choices={})) == {"choices": ["conv9", "pool4"]}
    assert sections(base, missed_report()) == {"floors": ["agreement of 'logits'"]}
    assert sections(base, changed(base, file_bytes={"model.onnx": 5})) == {"sizes": ["model.onnx", "model.ort"]}
    output = dataclasses.replace(base.verdict.outputs[0], sqnr_db=20.0)
    assert sections(base, changed(base, outputs=(output, base.verdict.outputs[1]))) == {"outputs": ["logits SQNR"]}
    layer = dataclasses.replace(base.layers[0], precision="float", runs_integer=False)
    moved = dataclasses.replace(base, layers=(layer, *base.layers[1:]))
    assert sections(base, moved) == {"layers": ["conv1: planned", "conv1: runs in"]}
    fewer = dataclasses.replace(base, passes=base.passes[1:])
    assert sections(base, fewer)["passes"][0] == "order"


def test_diff_fits_the_terminal_and_says_what_it_leaves_out():
    left, right = make_report(60, hostile=True), make_report(90)
    short, full = printed(print_diff, left, right), printed(print_diff, left, right, verbose=True)
    assert max(map(len, short.splitlines())) <= 80
    assert " more\n" in short
    assert " more\n" not in full
    assert len(full) > len(short)


def test_flatten_names_nested_values():
    assert flatten({"a": {"b": [1, 2]}, "c": None}) == {"a.b": "[1, 2]", "c": "-"}
