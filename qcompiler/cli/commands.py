"""The command tree."""

from __future__ import annotations

import click

from qcompiler.cli.compile_command import compile_command
from qcompiler.cli.grammar import WIDTH, DefaultGroup
from qcompiler.cli.lint_command import lint_command
from qcompiler.cli.list_commands import passes_command, targets_command
from qcompiler.cli.profile_command import profile_command
from qcompiler.cli.report_commands import diff_command, inspect_command
from qcompiler.cli.scales_commands import apply_scales_command, tune_scales_command


def _print_version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"qcompile {version('qcompiler')}")
        except PackageNotFoundError:
            click.echo("qcompile (not installed)")
        context.exit()


@click.group(
    cls=DefaultGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def qcompile() -> None:
    """Compress a trained ONNX model for the hardware it will run on, and prove the result."""


for _command in (
    compile_command,
    inspect_command,
    profile_command,
    diff_command,
    tune_scales_command,
    apply_scales_command,
    lint_command,
    targets_command,
    passes_command,
):
    qcompile.add_command(_command)
