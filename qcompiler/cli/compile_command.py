"""``qcompile MODEL.onnx --target NAME``: the main command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.grammar import SectionCommand
from qcompiler.cli.options import compile_options
from qcompiler.cli.output import message, print_json, stdout_console
from qcompiler.cli.progress import show_progress

if TYPE_CHECKING:
    from qcompiler.compiler import CompileResult
    from qcompiler.recipe import Recipe

EXAMPLES = (
    "qcompile model.onnx --target arm",
    "qcompile model.onnx --target arm --target x86 --data samples.npz --labels labels.npy",
    "qcompile model.onnx --data images/ --config qcompile.toml --max-drop 0.5 --max-size 1.5MB",
    "qcompile model.onnx --data loader:samples --json > report.json",
    "qcompile inspect model.qcompile --layer conv1",
)

_FLOORS = ("min_sqnr", "min_agreement", "max_drop", "max_size", "max_latency_ratio")
_NOT_RECIPE = ("config", "output", "force", "summary", "as_json", "verbose", "dry_run")


@click.command("compile", cls=SectionCommand, examples=EXAMPLES, short_help="Compile a model (the default).")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@compile_options
def compile_command(model: Path, **flags: Any) -> int:  # noqa: ANN401 - the options, as click read them
    """Compress a trained ONNX model for the hardware it will run on, and prove the result.

    The file that was written is loaded in the target's runtime, run on samples that calibration never saw,
    compared with the original, and timed against it. What falls short is repaired or reported with its cause;
    the exit code is 0 only if every floor held. A file that is named like a command is given as ./inspect.
    """
    recipe = _recipe(flags)
    if flags["dry_run"]:
        from qcompiler.compiler import plan_only

        click.echo(plan_only(model, recipe=recipe).rstrip("\n"))
        return 0
    from qcompiler.errors import FloorMissed

    try:
        _show(_compile(model, recipe, flags), flags)
    except FloorMissed as error:
        _show(error.results, flags)
        raise
    return 0


def _recipe(flags: dict[str, Any]) -> Recipe:
    from qcompiler.recipe_file import load_recipe

    given = {key: value for key, value in flags.items() if key not in _NOT_RECIPE and value not in (None, ())}
    floors = {key: given.pop(key) for key in _FLOORS if key in given}
    return load_recipe(flags["config"], {**given, "floors": floors} if floors else given)


def _compile(model: Path, recipe: Recipe, flags: dict[str, Any]) -> Sequence[CompileResult]:
    from qcompiler.compiler import compile_model

    command = ("qcompile", *sys.argv[1:])
    out, force = flags["output"], flags["force"]
    with show_progress() as progress:
        return compile_model(model, recipe=recipe, out=out, force=force, command=command, progress=progress)


def _show(results: Sequence[CompileResult], flags: dict[str, Any]) -> None:
    if flags["summary"]:
        from qcompiler.report.document import write_text
        from qcompiler.report.summary import markdown_summary

        write_text(flags["summary"], markdown_summary([result.report for result in results]))
    if flags["as_json"]:
        from qcompiler.report.document import to_document

        entries = [{"target": r.target, "folder": str(r.folder), "report": to_document(r.report)} for r in results]
        print_json({"results": entries})
        return
    from qcompiler.report.terminal import print_report

    console = stdout_console()
    for result in results:
        print_report(result.report, console, verbose=flags["verbose"])
    if len(results) > 1:
        from qcompiler.report.compare import print_comparison

        print_comparison([result.report for result in results], console)
    for result in results:
        message(f"{result.target}: {result.folder}")
