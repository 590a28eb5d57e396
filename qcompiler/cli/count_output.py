"""What ``qcompile profile --device emulated:BOARD`` prints: instructions, in words that no one takes for a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompiler.cli.output import message, print_json, print_table

if TYPE_CHECKING:
    from qcompiler.counts import InstructionCounts
    from qcompiler.inspection.counting import CountResult

_NODES_SHOWN = 20
_CLASSES = ("dot", "matrix", "widening", "fmla", "other")


def print_counts(result: CountResult, *, as_json: bool, layers: bool) -> None:
    """Print what was counted.

    Args:
        result: what was counted.
        as_json: as one JSON document.
        layers: also the most expensive nodes; the JSON always has all.
    """
    if as_json:
        paths = {"model": str(result.model), "other": str(result.other) if result.other else None}
        print_json({**dataclasses.asdict(result), **paths})
        return
    rows = [_row(result.model, result.counts)]
    if result.other is not None and result.other_counts is not None:
        rows.append(_row(result.other, result.other_counts))
    print_table(("model", "instructions (emulated)", *_CLASSES), rows)
    if result.other_counts is not None:
        click.echo(
            f"\ninstruction ratio {result.counts.total / result.other_counts.total:.3f} (a count, not a speedup)"
        )
    if layers and result.nodes:
        click.echo()
        _print_nodes(result)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    message(f"1 thread on the emulated {result.board} ({versions}); {result.source}")
    for note in result.notes:
        message(f"note: {note}")


def _row(path: Path, counts: InstructionCounts) -> tuple[str, ...]:
    return (str(path), f"{counts.total:,}", *(f"{getattr(counts, name):,}" for name in _CLASSES))


def _print_nodes(result: CountResult) -> None:
    both = result.other is not None
    rows = []
    for node in result.nodes[:_NODES_SHOWN]:
        sides = (node.after, node.before) if both else (node.after,)
        rows.append((node.name, node.op_type, *("-" if c is None else f"{c.total:,}" for c in sides)))
    print_table(("node", "operator", "instructions (emulated)", *(("of OTHER",) if both else ())), rows)
    if len(result.nodes) > _NODES_SHOWN:
        click.echo(f"and {len(result.nodes) - _NODES_SHOWN} more; --json prints all")
