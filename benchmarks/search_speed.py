"""How fast a search evaluates candidates: against what the steps behind them cost, and against a runtime's sessions.

Usage: python -m benchmarks.search_speed [--data ROOT] [--models a,b] [--rows N] [--candidates N]

At steps along the network the losses of candidates (other weights of one layer) are evaluated on calibration
samples. Printed are candidates per second, the bound (one full evaluation, less the share of the steps before the
candidate), and the ratio to opening a session of ONNX Runtime per candidate and running all samples through it.
One thread and processor seconds, so that other programs hardly disturb the ratios.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from benchmarks.models import CNN_MODELS, PUBLIC_MODELS, BenchmarkModel
from qcompiler.executor.batching import batch_axes, row_count, rows_of, stack
from qcompiler.executor.binding import Binding
from qcompiler.executor.determinism import deterministic
from qcompiler.executor.executor import TorchExecutor
from qcompiler.executor.loss import DistillationLoss
from qcompiler.executor.oracle import Limits, LossOracle
from qcompiler.executor.timing import search_speed, step_seconds
from qcompiler.model.load import load_model
from qcompiler.model.save import to_proto
from qcompiler.pipeline import Pipeline
from qcompiler.plan import CompressionPlan
from qcompiler.recipe import Recipe
from qcompiler.registry import load_target, make_pass
from qcompiler.state import Context, State

DEFAULT = ("digits_cnn", "squeezenet1_1", "cifar10_resnet20")
PLACES = (0.0, 0.25, 0.5, 0.75, 0.95)
PASSES = ("fold-batch-norm", "place", "observe", "scale-weights{rounding=nearest}", "calibrate{method=minmax}")
REPEATS = 3


@dataclass(frozen=True)
class Rows:
    """The first calibration samples of a benchmark model, one row each."""

    arrays: dict[str, npt.NDArray[np.generic]]
    count: int
    source: str = "benchmark"
    fingerprint: str = "0" * 64
    preprocessing: str = ""
    notes: tuple[str, ...] = ()
    rows_per_sample: int = 1
    row_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.count

    def __getitem__(self, index: int, /) -> dict[str, npt.NDArray[np.generic]]:
        """Return one sample."""
        return {name: array[index : index + 1] for name, array in self.arrays.items()}


def planned(path: Path, samples: Rows) -> tuple[State, ir.Model]:
    """Return a state with a plan by minimum and maximum, and its model as the x86 target writes it."""
    target = load_target("x86")
    context = Context(target=target, recipe=Recipe(), calibration=samples)
    state = State(model=load_model(path).model, plan=CompressionPlan())
    state = Pipeline(tuple(make_pass(n) for n in PASSES), check=False).run(state, context)[0]
    lowering = Pipeline(tuple(make_pass(n) for n in target.lower_passes()), check=False)
    return state, lowering.run(state, context)[0].model


def session_seconds(model: ir.Model, samples: Rows) -> float:
    """Return processor seconds of a new session and one run per sample."""
    content = to_proto(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for index in range(len(samples)):
            session.run(None, samples[index])
        best = min(best, time.process_time() - start)
    return best


def candidates_at(oracle: LossOracle, step: int, count: int) -> list[Binding]:
    """Return candidates that differ from the base in the weight that a step reads."""
    weight = oracle.executor.steps[step].inputs[1]
    base = oracle.binding.parameters
    factors = (1.0 + 0.001 * (1 + number) for number in range(count))
    return [replace(oracle.binding, parameters={**base, weight: base[weight] * f}) for f in factors]


def measure(model: BenchmarkModel, path: Path, data: Path | None, rows: int, count: int) -> list[str]:
    """Return one row of the table for every place in the network."""
    arrays = model.samples(data or Path())
    samples = Rows(dict(arrays.calibration), min(rows, len(next(iter(arrays.calibration.values())))))
    state, lowered = planned(path, samples)
    executor = TorchExecutor(state.model)
    axes = batch_axes(executor)
    feeds = stack([samples[i] for i in range(len(samples))], executor)
    oracle = LossOracle(state, executor, feeds, DistillationLoss(executor, feeds, axes), axes)
    batch = min(Limits().batch_rows if axes is not None else 1, row_count(feeds))
    seconds = step_seconds(executor, rows_of(feeds, slice(0, batch)), oracle.binding)
    session = session_seconds(lowered, samples)
    layers = [i for i, s in enumerate(executor.steps) if len(s.inputs) > 1 and s.inputs[1] in oracle.binding.parameters]
    lines = []
    for place in PLACES:
        step = layers[int(place * len(layers))]
        speed = search_speed(oracle, step, candidates_at(oracle, step, count), seconds, REPEATS)
        lines.append(
            f"| {model.name} | {layers.index(step) + 1} of {len(layers)} | {speed.suffix_share:.2f} "
            f"| {speed.candidates_per_s:.1f} | {speed.bound_per_s:.1f} "
            f"| {speed.candidates_per_s / speed.bound_per_s:.2f} | {speed.candidates_per_s * session:.1f} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_speed", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data folder; default: the public part only")
    parser.add_argument("--models", default=",".join(DEFAULT), metavar="A,B", help="names of the models to run")
    parser.add_argument("--rows", type=int, default=16, help="samples per candidate")
    parser.add_argument("--candidates", type=int, default=16, help="candidates per step")
    given = parser.parse_args(argv)
    known = {m.name: m for m in (*PUBLIC_MODELS, *CNN_MODELS)}
    print(f"{given.rows} samples, {given.candidates} candidates per layer, one thread\n")
    print("| model | layer | share of steps behind | candidates/s | bound/s | of the bound | to new sessions |")
    print("|---|---|---|---|---|---|---|")
    with deterministic(1), tempfile.TemporaryDirectory() as scratch:
        for name in given.models.split(","):
            path = known[name].locate(given.data, Path(scratch)) if name in known else None
            if path is None:
                print(f"{name}: no such model here; give its folder with --data", file=sys.stderr)
                continue
            for line in measure(known[name], path, given.data, given.rows, given.candidates):
                print(line, flush=True)


if __name__ == "__main__":
    main()
