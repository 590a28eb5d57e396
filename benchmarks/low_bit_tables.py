"""Markdown of what was measured below 8 bits: losses against targets, sizes, latencies, solvers, times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.answers import Change, bootstrap_interval, losses_by_row
from benchmarks.low_bits import (
    AGREEMENT_TARGETS,
    LEVEL_TARGETS,
    MIXED,
    RIVAL,
    SIZE_TARGETS,
    SOLVERS,
    TARGETS,
    UNIFORM,
    Run,
    Setting,
)
from benchmarks.models import BenchmarkModel
from benchmarks.readers import Array
from benchmarks.scoring import LatencyRatio
from benchmarks.tables import decibels, latency, markdown_table, wrapped

Cells = Mapping[Setting, Sequence[Run]]
"""One model's runs by setting, seeds in order."""


def cells(runs: Sequence[Run], model: str) -> dict[Setting, list[Run]]:
    """Return the runs of one model by setting, wide weights first, seeds in order."""
    order = sorted({r.setting for r in runs if r.model == model}, key=_order)
    own = sorted((r for r in runs if r.model == model), key=lambda r: r.seed)
    return {setting: [r for r in own if r.setting == setting] for setting in order}


def _order(setting: Setting) -> tuple[object, ...]:
    return (-setting.width, setting.kind == RIVAL, setting.kind != MIXED, setting.effort, setting.minutes, setting.kind)


def is_met(model: str, setting: Setting, runs: Sequence[Run]) -> bool | None:
    """Return whether the mean of the seeds meets all that is asked of a cell, None if nothing is.

    A cell whose weights take more bits than its width meets nothing, nor does one with a failed seed.
    """
    if setting.kind not in (MIXED, UNIFORM):
        return None
    points = TARGETS.get(model, {}).get(setting.width)
    first = setting.width == 4
    level, size = (known.get(model) if first else None for known in (LEVEL_TARGETS, SIZE_TARGETS))
    agreement = AGREEMENT_TARGETS.get(model) if first else None
    if points is None and level is None:
        return None
    if not runs or not all(run.scored and run.within for run in runs):
        return False
    held = [size is None or max(r.file_bytes for r in runs) <= size]
    if points is not None:
        held.append(mean_of(runs, _points) <= points)
    if agreement is not None:
        held.append(mean_of(runs, _agreement) >= agreement)
    if level is not None:
        held.append(min(np.mean([list(r.levels_db.values()) for r in runs], axis=0)) >= level)
    return all(held)


def mean_of(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    """Return the mean of a figure over the seeds."""
    return float(np.mean([figure(run) for run in runs]))


def _points(run: Run) -> float:
    return run.change.points if run.change is not None else float("nan")


def _agreement(run: Run) -> float:
    return float(run.change.agrees.mean()) if run.change is not None else float("nan")


def _rise(run: Run) -> float:
    return float(run.change.entropy_rise.mean()) if run.change is not None else float("nan")


def loss_section(model: BenchmarkModel, found: Cells) -> str:
    """Return what every setting of a model loses on the scoring rows."""
    labelled = any(run.changes for runs in found.values() for run in runs)
    header = ["weights", "compiled with", "seeds"]
    header += (
        ["loss, points", "95 %", "worst seed", "cross-entropy", "agreement %", "lost / gained"] if labelled else []
    )
    header += ["SQNR dB", "stored bits", "file", "asked", "met"]
    rows = []
    for setting, runs in found.items():
        scored = [run for run in runs if run.scored]
        cells = [f"W{setting.width}A8", f"`{setting.label}`", ", ".join(str(r.seed) for r in runs)]
        if not scored:
            rows.append([*cells, *["-"] * (len(header) - len(cells))])
            continue
        cells += _answer_cells(scored) if labelled else []
        bits = [r.mean_bits for r in scored if r.mean_bits is not None]
        cells += [_levels(scored), f"{np.mean(bits):.3f}" if bits else "-", f"{scored[0].file_bytes:,}"]
        rows.append([*cells, *_verdict_cells(model.name, setting, runs)])
    top1 = next((r.original_top1 for runs in found.values() for r in runs if r.original_top1 is not None), None)
    about = f"{model.source}. {model.rows}."
    about += f" The float original is right in {top1:.2f} %." if top1 is not None else ""
    split = next((r.split for runs in found.values() for r in runs if any(r.split)), None)
    if split:
        about += f" Of the calibration rows, {split[0]} are searched on, {split[1]} accept, {split[2]} verify."
    return f"### {model.name}\n\n{wrapped(about)}\n\n{markdown_table(header, rows)}"


def _answer_cells(runs: Sequence[Run]) -> list[str]:
    changes = [run.change for run in runs if run.change is not None]
    low, high = bootstrap_interval(losses_by_row(changes))
    worst = max(change.points for change in changes)
    lost, gained = (np.mean([rows.sum() for rows in kind]) for kind in zip(*_flags(changes), strict=True))
    return [
        f"{mean_of(runs, _points):+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        f"{worst:+.2f}",
        f"{mean_of(runs, _rise):+.3f}",
        f"{100 * mean_of(runs, _agreement):.1f}",
        f"{lost:.0f} / {gained:.0f}",
    ]


def _flags(changes: Sequence[Change]) -> list[tuple[Array, Array]]:
    return [(change.lost, change.gained) for change in changes]


def _levels(runs: Sequence[Run]) -> str:
    means = {name: float(np.mean([r.levels_db[name] for r in runs])) for name in runs[0].levels_db}
    if len(means) == 1:
        return decibels(next(iter(means.values())))
    return ", ".join(f"{name} {decibels(value)}" for name, value in means.items())


def _verdict_cells(model: str, setting: Setting, runs: Sequence[Run]) -> list[str]:
    points = TARGETS.get(model, {}).get(setting.width)
    asked = [f"<= {points:g}"] if points is not None else []
    if setting.width == 4 and model in AGREEMENT_TARGETS:
        asked.append(f">= {100 * AGREEMENT_TARGETS[model]:g} %")
    if setting.width == 4 and model in LEVEL_TARGETS:
        asked.append(f">= {LEVEL_TARGETS[model]:g} dB")
    if setting.width == 4 and model in SIZE_TARGETS:
        asked.append(f"<= {SIZE_TARGETS[model] / 1e6:g} MB")
    met = is_met(model, setting, runs)
    return ["-", "-"] if met is None else [", ".join(asked), "yes" if met else "no"]


def reach_section(runs: Sequence[Run], models: Sequence[BenchmarkModel]) -> str:
    """Return the losses of weights that are mixed, one line a model and way of compiling, against what is asked."""
    widths = (4, 3, 2)
    rows = []
    for model in models:
        found = cells(runs, model.name)
        ways = sorted({(s.effort, s.minutes) for s in found if s.kind == MIXED and s.width < 8})
        for effort, minutes in ways:
            settings = [Setting(width, MIXED, effort, minutes) for width in widths]
            texts = [_reach_cell(model.name, s, found.get(s, ())) for s in settings]
            rows.append([model.name, f"`{settings[0].label.removeprefix('mixed ')}`", *texts])
    about = (
        "Loss of top-1 in points, or SQNR in dB where there are no classes: the mean of the seeds. Bold: what was "
        "asked of the cell is met. In brackets what was asked, and how many seeds there are if it is not three."
    )
    return f"## Reach\n\n{wrapped(about)}\n\n" + markdown_table(
        ("model", "compiled with", "W4A8", "W3A8", "W2A8"), rows
    )


def _reach_cell(model: str, setting: Setting, runs: Sequence[Run]) -> str:
    scored = [run for run in runs if run.scored]
    if not scored:
        return "failed" if runs else "-"
    value = f"{mean_of(scored, _points):+.2f}" if scored[0].changes else f"{_levels(scored)} dB"
    value = f"**{value}**" if is_met(model, setting, runs) else value
    asked, _ = _verdict_cells(model, setting, runs)
    seeds = "" if len(runs) == 3 else f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
    inside = "; ".join(text for text in (asked.strip("-"), seeds) if text)
    return f"{value} ({inside})" if inside else value


_SIZE_HEADER = (
    "model",
    "weights",
    "compiled with",
    "file",
    "below 8 bits",
    "in 8 bits",
    "scales",
    "biases",
    "graph, other",
    "exactly ceil",
    "unpacking a tensor",
    "load / float",
    "peak of loading",
    "/ float",
)


def size_section(runs: Sequence[Run], models: Sequence[BenchmarkModel]) -> str:
    """Return what the files hold, what unpacking costs in bytes, and what loading costs."""
    rows = []
    for model in models:
        for setting, found in cells(runs, model.name).items():
            run = found[0]
            if run.scored and run.stored and setting.kind == MIXED:
                rows.append([model.name, f"W{setting.width}A8", f"`{setting.label}`", *_size_cells(run)])
    about = (
        "Bytes of the files of the first seed. `exactly ceil`: packed tensors that take exactly "
        "ceil(bits * weights / 8) bytes. `unpacking a tensor`: nodes and constants that unpack, shared tables among "
        "them, divided by the packed tensors. Loading: the fastest of a few in processes of their own, and the memory "
        "that it takes at its peak."
    )
    return f"## Sizes and loading\n\n{wrapped(about)}\n\n{markdown_table(_SIZE_HEADER, rows)}"


def _size_cells(run: Run) -> list[str]:
    left = dict(run.stored)
    parts = [left.pop(name, 0) for name in ("weights below 8 bits", "8-bit weights", "scales", "biases")]
    exact = run.packed - len(run.wrong_sizes)
    each = f"{run.unpacking_each:.0f}" if run.unpacking_each is not None else "-"
    load = [f"{run.load[k]:.2f}" if k in run.load else "-" for k in ("ms", "peak_bytes")]
    peak = f"{run.load['bytes'] / 1e6:.1f} MB" if "bytes" in run.load else "-"
    sizes = [run.file_bytes, *parts, sum(left.values())]
    return [*(f"{size:,}" for size in sizes), f"{exact} of {run.packed}", each, load[0], peak, load[1]]


def latency_section(found: Mapping[str, Mapping[str, LatencyRatio]]) -> str:
    """Return the latencies against the same model in 8 bits.

    Args:
        found: model -> name of a file -> its ratio to the file with 8-bit weights.
    """
    rows = [
        [model, name, latency(ratio), f"{ratio.median:.3f}"]
        for model, own in found.items()
        for name, ratio in own.items()
    ]
    about = (
        "Over the latency of the same model compiled with 8-bit weights: one thread, batch 1, runs interleaved in one "
        "process; the ratio of the shortest runs +- the difference between even and odd rounds, and of the median runs."
    )
    if not rows:
        return ""
    return f"## Latency\n\n{wrapped(about)}\n\n" + markdown_table(("model", "file", "shortest", "median"), rows)


def contest_section(runs: Sequence[Run], models: Sequence[BenchmarkModel]) -> str:
    """Return how many layers every solver won, and how well sensitivities predict the order of losses."""
    rows = []
    for model in models:
        for setting, found in cells(runs, model.name).items():
            run = found[0]
            if run.wins and setting.kind == MIXED and not setting.minutes:
                won = ", ".join(f"{name} {count}" for name, count in run.wins.items() if count)
                rank = "-" if run.correlation is None else f"{run.correlation:.3f}"
                rows.append([model.name, f"W{setting.width}A8", f"-O{setting.effort}", won, _widths(run), rank])
    about = (
        "Layers that each solver won on samples that no solver saw (`best rows` takes every output channel from the "
        "solver that solved it best); how many weights have which width; and Spearman's rank correlation of the "
        "predicted with the measured loss of narrowing a layer. First seed."
    )
    header = ("model", "weights", "effort", "layers won", "bits: weights", "rank correlation")
    return f"## Solvers and sensitivities\n\n{wrapped(about)}\n\n{markdown_table(header, rows)}"


def _widths(run: Run) -> str:
    return ", ".join(f"{bits}: {count}" for bits, count in run.widths.items())


def alone_section(runs: Sequence[Run], models: Sequence[BenchmarkModel]) -> str:
    """Return the contest's result against every solver alone, on the rows of one seed; "" if that was not run."""
    kinds = [kind for kind in SOLVERS if any(run.setting.kind == kind for run in runs)]
    rows = []
    for model in models:
        found = cells(runs, model.name)
        for width in sorted({s.width for s in found if s.kind in kinds}, reverse=True):
            own = [found.get(Setting(width, kind), [])[:1] for kind in (MIXED, *kinds)]
            rows.append([model.name, f"W{width}A8", *(_alone_cell(one) for one in own)])
    if not rows:
        return ""
    header = ("model", "weights", "contest", *(f"{kind} alone" for kind in kinds))
    about = "Rise of cross-entropy in nats (loss of top-1 in points) of the first seed, all with the same widths."
    return f"## The contest against single solvers\n\n{wrapped(about)}\n\n{markdown_table(header, rows)}"


def _alone_cell(runs: Sequence[Run]) -> str:
    if not runs or not runs[0].scored:
        return "-"
    return f"{_rise(runs[0]):+.3f} ({_points(runs[0]):+.2f})" if runs[0].changes else f"{_levels(runs)} dB"


def time_section(runs: Sequence[Run], models: Sequence[BenchmarkModel]) -> str:
    """Return what compiling took."""
    rows = []
    for model in models:
        for setting, found in cells(runs, model.name).items():
            run = found[0]
            if setting.kind == MIXED and run.scored:
                stages = [
                    f"{run.stages[name]:.0f}" if name in run.stages else "-" for name in ("deciding", "improving")
                ]
                cost = [f"{run.wall_seconds:.0f}", *stages, f"{run.peak_bytes / 1e6:.0f}"]
                rows.append([model.name, f"W{setting.width}A8", f"`{setting.label}`", *cost])
    header = ("model", "weights", "compiled with", "wall s", "deciding s", "improving s", "peak MB")
    about = "Of the first seed, in a fresh process with its imports; other work ran on the machine at the same time."
    return f"## Time and memory of compiling\n\n{wrapped(about)}\n\n{markdown_table(header, rows)}"
