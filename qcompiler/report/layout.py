"""The few building blocks of every terminal page: headings, tables without lines, plain indented text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qcompiler.report.words import printable

INDENT = 2


def heading(console: Console, title: str) -> None:
    """Print the heading of a section, after an empty line."""
    console.print()
    console.print(Text(printable(title), style="bold"))


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table without lines; the columns named in ``right`` hold figures."""
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns))
    for name in columns:
        rows.add_column(Text(name), justify="right" if name in right else "left", no_wrap=name in right)
    return rows


def add_row(rows: Table, *cells: str | Text) -> None:
    """Add a row; a string is shown as it is, never read as markup or as terminal control."""
    rows.add_row(*(Text(printable(cell), overflow="fold") if isinstance(cell, str) else cell for cell in cells))


def show(console: Console, content: Table | str, *, indent: int = INDENT, style: str = "") -> None:
    """Print a table or a line of plain text, indented."""
    shown = Text(printable(content), style=style) if isinstance(content, str) else content
    console.print(Padding(shown, (0, 0, 0, indent), expand=False))


def show_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Print names with their values, aligned."""
    rows = table("", "")
    for name, value in facts.items():
        add_row(rows, Text(printable(name), style="dim", no_wrap=True), value)
    show(console, rows)
