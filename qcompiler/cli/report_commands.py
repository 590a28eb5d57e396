"""``qcompile inspect`` and ``qcompile diff``: look at results that were written before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompiler.cli.grammar import SectionCommand
from qcompiler.cli.output import print_json, stdout_console

if TYPE_CHECKING:
    from qcompiler.records import CompileReport

_DIR = click.Path(path_type=Path)


@click.command(
    "inspect",
    cls=SectionCommand,
    short_help="Show the report of a result.",
    examples=("qcompile inspect model.qcompile", "qcompile inspect model.qcompile --layer conv1"),
)
@click.argument("folder", type=_DIR, metavar="DIR")
@click.option("--layer", metavar="NAME", help="Show everything about one layer.")
@click.option("--pass", "pass_name", metavar="NAME", help="Show everything one pass did.")
@click.option("--html", "html", is_flag=True, help="Print the path of the HTML report instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Print every layer and every note.")
def inspect_command(
    folder: Path, layer: str | None, pass_name: str | None, html: bool, as_json: bool, verbose: bool
) -> int:
    """Show the report of a result folder in the terminal: what was decided, why, and what was measured."""
    folders = _result_folders(folder)
    if html:
        for each in folders:
            click.echo(_html_path(each))
        return 0
    from qcompiler.report.document import load_report, to_document

    reports = [load_report(each) for each in folders]
    if as_json:
        documents = [to_document(report) for report in reports]
        print_json(documents[0] if len(documents) == 1 else documents)
        return 0
    _print(reports, layer, pass_name, verbose)
    return 0


@click.command(
    "diff",
    cls=SectionCommand,
    short_help="Compare two results.",
    examples=("qcompile diff before.qcompile after.qcompile",),
)
@click.argument("first", type=_DIR, metavar="DIR1")
@click.argument("second", type=_DIR, metavar="DIR2")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Print every difference.")
def diff_command(first: Path, second: Path, as_json: bool, verbose: bool) -> int:
    """Show where two results differ: recipe, decisions, quality, size, and last what was measured."""
    from qcompiler.report.diff import differences, measured_differences, print_diff
    from qcompiler.report.document import load_report

    left, right = load_report(first), load_report(second)
    if as_json:
        found = {"differences": differences(left, right), "measured": measured_differences(left, right)}
        print_json({key: [dataclasses.asdict(each) for each in items] for key, items in found.items()})
    else:
        print_diff(left, right, stdout_console(), verbose=verbose)
    return 0


def _print(reports: list[CompileReport], layer: str | None, pass_name: str | None, verbose: bool) -> None:
    from qcompiler.report.terminal import print_report

    console = stdout_console()
    for report in reports:
        print_report(report, console, layer=layer, pass_name=pass_name, verbose=verbose)
    if len(reports) > 1 and not layer and not pass_name:
        from qcompiler.report.compare import print_comparison

        print_comparison(reports, console)


def _result_folders(folder: Path) -> list[Path]:
    """Return the folders with a report: the folder itself, or its folders of one target each."""
    if (folder / "report.json").exists() or not folder.is_dir():
        return [folder]
    nested = sorted(path.parent for path in folder.glob("*/report.json"))
    return nested or [folder]


def _html_path(folder: Path) -> Path:
    from qcompiler.errors import InputError

    path = (folder if folder.is_dir() else folder.parent) / "report.html"
    if not path.is_file():
        raise InputError(f"{path}: no report; give a folder that qcompile wrote")
    return path.resolve()
