"""The text of ``docs/cli.md``, made from ``--help``: ``python -m qcompiler.cli.reference > docs/cli.md``."""

from __future__ import annotations

import click

from qcompiler.cli.commands import qcompile
from qcompiler.cli.grammar import WIDTH


def cli_reference() -> str:
    """Return the help of the main command and of every other command as one Markdown page."""
    parts = ["# The command line", "", "Made from `--help` by `python -m qcompiler.cli.reference`."]
    parts += ["", "## qcompile", "", *_help(qcompile, "qcompile", None)]
    for name, command in qcompile.commands.items():
        if name != qcompile.default:
            parts += [
                "",
                f"## qcompile {name}",
                "",
                *_help(command, name, click.Context(qcompile, info_name="qcompile")),
            ]
    return "\n".join(parts) + "\n"


def _help(command: click.Command, name: str, parent: click.Context | None) -> list[str]:
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return ["```", command.get_help(context), "```"]


if __name__ == "__main__":
    print(cli_reference(), end="")
