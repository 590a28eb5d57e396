"""Where text goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def print_json(document: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print a JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def message(text: str) -> None:
    """Print a line for people on stderr."""
    click.echo(text, err=True)


def stdout_console() -> Console:
    """Return a console for results. Piped output is 120 columns wide, so that tables keep their columns."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    return console if console.is_terminal else Console(width=120, highlight=False, emoji=False, markup=False)


def print_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a plain table on stdout."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    stdout_console().print(table)
