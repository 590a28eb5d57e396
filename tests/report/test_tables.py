"""Tables of a pass in the report: round trip, terminal and page."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from qcompiler.records import PassReport, Table, TableRow
from qcompiler.report.document import from_document, to_document, validate
from qcompiler.report.html import render_html
from qcompiler.report.views import print_pass
from tests.report.builder import make_report

TABLE = Table(
    "Output by <solver>",
    "dB",
    ("nearest", "gptq"),
    (TableRow("conv<1>", (17.25, None), "nearest, even"), TableRow("fc", (20.5, 31.0))),
)


def report_with_table():
    step = PassReport(name="solve-codes", changed=True, tables=(TABLE,))
    return replace(make_report(), passes=(step,))


def test_a_table_survives_the_document():
    document = to_document(report_with_table())
    validate(document)
    assert from_document(document).passes[0].tables == (TABLE,)


def test_a_document_without_tables_is_still_read():
    document = to_document(report_with_table())
    del document["passes"][0]["tables"]
    validate(document)
    assert from_document(document).passes[0].tables == ()


def test_the_terminal_shows_every_row():
    out = io.StringIO()
    print_pass(report_with_table(), Console(file=out, width=200), "solve-codes")
    assert "conv<1>: nearest 17.2" in out.getvalue()
    assert "(nearest, even)" in out.getvalue()
    assert "fc: nearest 20.5" in out.getvalue()


def test_the_page_shows_every_row_and_escapes_names():
    page = render_html(report_with_table())
    assert "conv&lt;1&gt;" in page
    assert "Output by &lt;solver&gt;" in page
    assert "nearest, even" in page
