"""``qcompile tune-scales`` and ``qcompile apply-scales``: scales as a task of a compiled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qcompiler.cli.grammar import SectionCommand
from qcompiler.cli.output import message

_PATH = click.Path(path_type=Path)


@click.command(
    "tune-scales",
    cls=SectionCommand,
    short_help="Fine-tune the scales of a result for a task.",
    examples=("qcompile tune-scales model.qcompile model.onnx --data task.npz --labels task.npy -o scales.npz",),
)
@click.argument("folder", type=_PATH, metavar="DIR")
@click.argument("model", type=_PATH, metavar="MODEL.onnx")
@click.option("--data", required=True, metavar="PATH", help="Samples of the task, as for compiling.")
@click.option("--labels", metavar="PATH", help="Class labels, which alone are learned. Default: the float answers.")
@click.option("--steps", type=int, default=300, metavar="N", help="Mini-batches. Default: 300.")
@click.option("--rows", type=int, default=32, metavar="N", help="Samples in a mini-batch. Default: 32.")
@click.option("--rate", type=float, default=0.02, metavar="R", help="Learning rate, in grid steps. Default: 0.02.")
@click.option("--seed", type=int, default=0, metavar="N", help="Of the order of samples. Default: 0.")
@click.option("--threads", type=int, default=1, metavar="N", help="Threads to compute with. Default: 1.")
@click.option("-o", "--output", type=_PATH, default=Path("scales.npz"), metavar="FILE", help="Default: scales.npz.")
def tune_scales_command(folder: Path, model: Path, output: Path, **options: Any) -> int:  # noqa: ANN401
    """Train the scales of a result's weights on a task and write them to a file; integer codes stay what they are.

    MODEL.onnx is the float model that DIR was compiled from.
    """
    from qcompiler.cli.progress import show_progress
    from qcompiler.task_scales.file import save_scales
    from qcompiler.task_scales.tuning import TuneOptions, tune_scales

    with show_progress() as progress:
        found = tune_scales(folder, model, TuneOptions(**options), progress)
    save_scales(output, found.task)
    click.echo(f"{output}: {found.unit} on samples that were not learned {found.before:.4g} -> {found.after:.4g}")
    if not found.after < found.before:
        message("warning: the task got no better; try another --rate, more samples or more --steps")
    return 0


@click.command(
    "apply-scales",
    cls=SectionCommand,
    short_help="Put the scales of a task into a result.",
    examples=("qcompile apply-scales model.qcompile scales.npz -o task.onnx",),
)
@click.argument("model", type=_PATH, metavar="MODEL_OR_DIR")
@click.argument("scales", type=_PATH, metavar="SCALES.npz")
@click.option("-o", "--output", type=_PATH, required=True, metavar="FILE", help="The model to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def apply_scales_command(model: Path, scales: Path, output: Path, force: bool) -> int:
    """Write a compiled model with other scales, without compiling again; codes stay byte for byte what they are.

    What is written is loaded once; how good it is was measured by tune-scales.
    """
    from qcompiler.task_scales.applying import apply_scales

    done = apply_scales(model, scales, output, force=force)
    biases = f", {done.biases} integer biases rounded anew" if done.biases else ""
    click.echo(f"{done.path}: {done.scales} scales of {done.weights} weights{biases}; codes unchanged, loads")
    return 0
