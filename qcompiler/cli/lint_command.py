"""``qcompile lint``: what a target's table says about a model, without compiling it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompiler.cli.grammar import SectionCommand
from qcompiler.cli.output import message, print_json, print_table

if TYPE_CHECKING:
    from qcompiler.inspection.linting import LintResult


USUAL = "W8A8"


@click.command(
    "lint",
    cls=SectionCommand,
    short_help="List the nodes that a target would not run in integers.",
    examples=("qcompile lint model.onnx --target tensorrt", "qcompile lint model.onnx --target x86 --bits W4A4"),
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--target", required=True, metavar="NAME[:PROFILE]", help="The target, see 'qcompile targets'.")
@click.option(
    "--bits",
    default=USUAL,
    metavar="WxAy",
    help="Bits of weights (1 to 8) and activations (4, 8 or 16) to look up. Default: W8A8.",
)
@click.option("--strict", is_flag=True, help="End in exit code 4 if any node would stay in float.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
def lint_command(model: Path, target: str, bits: str, strict: bool, as_json: bool) -> int:
    """List the nodes of a float model that a target's table does not run in integers, and why.

    Nothing is compiled and nothing is run: this is what the table says, for targets too that cannot be run here.
    """
    from qcompiler.errors import FloorMissed
    from qcompiler.inspection.linting import lint_model

    result = lint_model(model, target, bits)
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        _print(model, result)
    if strict and result.findings:
        count = len(result.findings)
        stay = "node would stay" if count == 1 else "nodes would stay"
        raise FloorMissed(f"{model}: {count} {stay} in float on {result.target}")
    return 0


def _print(model: Path, result: LintResult) -> None:
    share = "" if result.mac_share is None else f" ({result.mac_share:.1%} of the multiply-accumulates)"
    table = result.target if result.bits == USUAL else f"{result.target} at {result.bits}"
    click.echo(
        f"{model.name} on {table}: {result.integer_compute_nodes} of {result.compute_nodes} compute nodes "
        f"would run in integers{share}"
    )
    if result.findings:
        click.echo(f"\n{len(result.findings)} of {result.nodes} nodes would stay in float:")
        rows: list[tuple[str, ...]] = [(f.op_type, f.node, f.reason) for f in result.findings]
        print_table(("operator", "node", "why"), rows)
    message("not executed here: " + ("a table only" if result.only_a_table else "the table; compile to measure"))
