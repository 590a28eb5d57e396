"""``qcompile profile``: how long a model takes, here or on another device, and where the time goes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.cli.grammar import SectionCommand
from qcompiler.cli.output import message, print_json, print_table

if TYPE_CHECKING:
    from qcompiler.inspection.profiling import ProfileResult
    from qcompiler.records import LatencyProfile, LayerTime
    from qcompiler.runtime.devices.records import DeviceReport

_PATH = click.Path(path_type=Path)
_LAYERS_SHOWN = 20


@click.command(
    "profile",
    cls=SectionCommand,
    short_help="Measure a model or a result, here or on another device.",
    examples=(
        "qcompile profile model.qcompile --compare model.onnx",
        "qcompile profile model.onnx --data samples.npz --threads 4 --layers",
        "qcompile profile model.qcompile --device ssh://pi@raspberrypi.local --compare model.onnx",
    ),
)
@click.argument("model", type=_PATH, metavar="MODEL_OR_DIR")
@click.option("--compare", "other", type=_PATH, metavar="OTHER", help="Measure a second model, in turns with it.")
@click.option(
    "--device",
    default="local",
    metavar="DEVICE",
    help="Where to measure: local (default), ssh://[USER@]BOARD[:PORT], adb[:SERIAL] or emulated:BOARD, "
    "which counts instructions. What is behind ssh or adb needs Python with NumPy and onnxruntime; ?python=PATH at "
    "the end names which.",
)
@click.option("--layers", is_flag=True, help="Also show where the time goes, node by node.")
@click.option("--data", metavar="PATH", help="Samples, as for compiling; the first is run. Default: generated.")
@click.option("--threads", type=int, default=1, metavar="N", help="Threads of the session. Default: 1.")
@click.option("--seconds", type=float, default=2.0, metavar="S", help="Time to measure for. Default: 2.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON on stdout.")
def profile_command(model: Path, other: Path | None, as_json: bool, **options: Any) -> int:  # noqa: ANN401
    """Measure the latency of a model file or of a result folder, whatever its target."""
    if options["device"].startswith("emulated:"):
        return _count(model, other, as_json, options)
    from qcompiler.inspection.profiling import ProfileOptions, profile_model

    result = profile_model(model, other, ProfileOptions(**options))
    if as_json:
        print_json(_document(result))
    else:
        _print(result)
    return 0


def _count(model: Path, other: Path | None, as_json: bool, options: dict[str, Any]) -> int:
    """Count instructions where there is no hardware to measure."""
    from qcompiler.cli.count_output import print_counts
    from qcompiler.cli.progress import show_progress
    from qcompiler.errors import UsageError
    from qcompiler.inspection.counting import count_model

    if options["threads"] != 1:
        raise UsageError("an emulated board has one core; leave --threads out")
    with show_progress() as progress:
        result = count_model(model, other, device=options["device"], data=options["data"], progress=progress)
    print_counts(result, as_json=as_json, layers=options["layers"])
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
    if result.layers:
        click.echo()
        _print_layers(result.layers, both=result.other is not None)
    click.echo()
    print_table(("device", result.device.name), _device_rows(result.device))
    threads = result.profile.threads
    message(f"{threads} thread{'' if threads == 1 else 's'} on {result.profile.machine}; {result.source}")
    for sign in result.device.throttling:
        message(f"warning: maybe throttled: {sign}")
    for note in result.device.notes:
        message(f"note: {note}")


def _row(path: Path, profile: LatencyProfile) -> tuple[str, ...]:
    figures = (profile.min_ms, profile.median_ms, profile.p90_ms)
    return (str(path), *(f"{value:.3f}" for value in figures), str(profile.runs))


def _print_layers(layers: tuple[LayerTime, ...], *, both: bool) -> None:
    """Print the slowest nodes; shares are of the whole profile, which takes longer than a plain run."""
    total = sum(row.after_us or 0.0 for row in layers) or 1.0
    rows = []
    for row in layers[:_LAYERS_SHOWN]:
        other = (_microseconds(row.before_us),) if both else ()
        share = f"{100 * (row.after_us or 0.0) / total:.1f}"
        rows.append((row.name, row.op_type, _microseconds(row.after_us), *other, share))
    headings = ("node", "operator", "us", *(("us of OTHER",) if both else ()), "% of model")
    print_table(headings, rows)
    if len(layers) > _LAYERS_SHOWN:
        click.echo(f"and {len(layers) - _LAYERS_SHOWN} more; --json prints all")


def _microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _device_rows(report: DeviceReport) -> list[tuple[str, ...]]:
    before, after, versions = report.before, report.after, report.versions
    rows: list[tuple[str, ...]] = [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("governor", ", ".join(after.governors) or "not told"),
        ("clock", f"{_range(before.mhz)} -> {_range(after.mhz)} MHz" if after.mhz else "not told"),
    ]
    zones = [f"{zone} {before.celsius.get(zone, c):.0f} -> {c:.0f} C" for zone, c in after.celsius.items()]
    rows.append(("temperature", ", ".join(zones) or "not told"))
    rows.append(("drift", f"{100 * report.drift:+.1f} % from the first runs to the last"))
    memory = report.peak_memory_bytes
    rows.append(("peak memory", f"{memory / 1e6:.1f} MB" if memory else "not told"))
    return rows


def _range(values: tuple[float, ...]) -> str:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f}-{high:.0f}"
