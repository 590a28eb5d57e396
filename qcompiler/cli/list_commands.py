"""``qcompile targets`` and ``qcompile passes``: what there is to choose from."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from qcompiler.cli.grammar import SectionCommand
from qcompiler.cli.output import print_json, print_table


@click.command("targets", cls=SectionCommand, short_help="List the targets.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON on stdout.")
def targets_command(as_json: bool) -> int:
    """List the targets: hardware, its profiles, and whether this machine is one."""
    from qcompiler.registry import load_target, target_names

    rows: list[dict[str, Any]] = []
    for name in target_names():
        target = load_target(name)
        rows.append(
            {
                "name": name,
                "profiles": list(target.profiles),
                "default": target.full_name,
                "summary": target.summary,
                "weight_bits": sorted(target.weight_bits),
                "activation_bits": sorted(target.activation_bits),
                "executes_here": target.executes_here,
            }
        )
    if as_json:
        print_json(rows)
        return 0
    print_table(
        ("target", "plain name means", "profiles", "bits", "runs here", "what it is"),
        [
            (
                row["name"],
                row["default"],
                ", ".join(row["profiles"]) or "-",
                f"W{'/'.join(map(str, row['weight_bits']))} A{'/'.join(map(str, row['activation_bits']))}",
                "yes" if row["executes_here"] else "no",
                row["summary"],
            )
            for row in rows
        ],
    )
    return 0


@click.command("passes", cls=SectionCommand, short_help="List the passes and their options.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON on stdout.")
def passes_command(as_json: bool) -> int:
    """List the passes: what each does, what it may touch, and its options with their defaults."""
    from qcompiler.registry import make_pass, pass_names

    rows: list[dict[str, Any]] = []
    for name in pass_names():
        step = make_pass(name)
        rows.append(
            {
                "name": name,
                "kind": str(step.kind),
                "summary": (inspect.getdoc(step) or "").split("\n\n")[0].replace("\n", " "),
                "options": _options(step),
                "requires": sorted(map(str, step.requires)),
                "provides": sorted(map(str, step.provides)),
            }
        )
    if as_json:
        print_json(rows)
        return 0
    print_table(
        ("pass", "kind", "options", "what it does"),
        [
            (
                row["name"],
                row["kind"],
                "\n".join(f"{key}={value}" for key, value in row["options"].items()) or "-",
                row["summary"],
            )
            for row in rows
        ],
    )
    return 0


def _options(step: Any) -> dict[str, bool | int | float | str | None]:  # noqa: ANN401 - a pass of any class
    """Return the options of a pass with their defaults, as JSON values."""
    if not dataclasses.is_dataclass(step):
        return {}
    own = [field for field in dataclasses.fields(step) if field.init and field.name not in ("name", "kind", "function")]
    values = {field.name: getattr(step, field.name) for field in own}
    plain = (bool, int, float, str, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}
