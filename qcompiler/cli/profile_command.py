"""``qcompile profile``: how long a model takes on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.grammar import SectionCommand
from qcompiler.cli.output import message, print_json, print_table

if TYPE_CHECKING:
    from qcompiler.profiling import ProfileResult
    from qcompiler.records import LatencyProfile

_PATH = click.Path(path_type=Path)


@click.command(
    "profile",
    cls=SectionCommand,
    short_help="Measure a model or a result on this machine.",
    examples=(
        "qcompile profile model.qcompile --compare model.onnx",
        "qcompile profile model.onnx --data samples.npz --threads 4",
    ),
)
@click.argument("model", type=_PATH, metavar="MODEL_OR_DIR")
@click.option("--compare", "other", type=_PATH, metavar="OTHER", help="Measure a second model, in turns with it.")
@click.option("--data", metavar="PATH", help="Samples, as for compiling; the first is run. Default: generated.")
@click.option("--threads", type=int, default=1, metavar="N", help="Threads of the session. Default: 1.")
@click.option("--seconds", type=float, default=2.0, metavar="S", help="Time to measure for. Default: 2.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON on stdout.")
def profile_command(
    model: Path, other: Path | None, data: str | None, threads: int, seconds: float, as_json: bool
) -> int:
    """Measure the latency of a model file or of a result folder on this machine, whatever its target."""
    from qcompiler.profiling import ProfileOptions, profile_model

    options = ProfileOptions(data=data, threads=threads, seconds=seconds)
    result = profile_model(model, other, options)
    if as_json:
        print_json(_document(result))
    else:
        _print(result)
    return 0


def _document(result: ProfileResult) -> dict[str, Any]:
    document = dataclasses.asdict(result)
    return {**document, "model": str(result.model), "other": str(result.other) if result.other else None}


def _print(result: ProfileResult) -> None:
    rows = [_row(result.model, result.profile)]
    comparison = result.comparison
    if comparison is not None and result.other is not None:
        rows.append(_row(result.other, comparison.original))
    print_table(("model", "min ms", "median ms", "p90 ms", "runs"), rows)
    if comparison is not None:
        click.echo(
            f"\nlatency ratio {comparison.ratio_min:.3f} (minimum), {comparison.ratio_median:.3f} (median), "
            f"spread {comparison.spread:.3f}"
        )
    threads = result.profile.threads
    message(f"{threads} thread{'' if threads == 1 else 's'} on {result.profile.machine}; {result.source}")


def _row(path: Path, profile: LatencyProfile) -> tuple[str, ...]:
    figures = (profile.min_ms, profile.median_ms, profile.p90_ms)
    return (str(path), *(f"{value:.3f}" for value in figures), str(profile.runs))
