"""How much each solver of integer codes loses below 8 bits: the contest of every layer, and whole networks.

Rows that score are never touched: solvers see the first 64 % of a model's calibration rows, and all figures are
on the rest. Networks are simulated in float with weights that are rounded and decoded again, and biases corrected.

    python -m benchmarks.solvers [--data ROOT] [--models NAMES] [--bits 4,3,2] [--solvers NAMES] [--layers]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.models import CNN_MODELS, PUBLIC_MODELS, BenchmarkModel
from benchmarks.readers import Array, Arrays
from benchmarks.tables import markdown_table
from qcompiler.lowering import correct_bias, weight_codes
from qcompiler.model.edit import clone, constant_of, replace_constant, value_names
from qcompiler.model.load import load_model
from qcompiler.model.measured import measured_values
from qcompiler.pipeline import Pipeline
from qcompiler.plan import CompressionPlan, Role
from qcompiler.quant.grid import dequantize, power_ratio_db
from qcompiler.quant.solvers import SOLVERS
from qcompiler.recipe import Recipe
from qcompiler.records import PassReport, Table
from qcompiler.registry import load_target, make_pass
from qcompiler.runtime.capture import Executor
from qcompiler.state import Context, State

SOLVED_SHARE = 0.64
PREPARING = ("widen-float16", "fold-batch-norm", "equalize-channels", "place", "observe", "scale-weights")
PLAIN = "scale-weights{search=true,rounding=nearest}"


@dataclass(frozen=True)
class Rows:
    """Some rows of a benchmark model's calibration arrays, as samples of one row each."""

    arrays: Arrays
    first: int
    last: int
    source: str = "calibration rows of the benchmark"
    fingerprint: str = ""
    preprocessing: str = ""
    notes: tuple[str, ...] = ()
    rows_per_sample: int = 1
    row_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int, /) -> dict[str, Array]:
        row = self.first + index
        return {name: values[row : row + 1] for name, values in self.arrays.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table per model: SQNR of the outputs per width and solver, and who won how many layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder with models/ and their samples")
    parser.add_argument("--models", default="", help="names, separated by commas")
    parser.add_argument("--bits", default="4,3,2", help="widths of the weights, separated by commas")
    parser.add_argument("--solvers", default="+".join(SOLVERS), help="names joined by +")
    parser.add_argument("--layers", action="store_true", help="print the contest of every layer too")
    given = parser.parse_args(arguments)
    wanted = given.models.split(",") if given.models else [m.name for m in (*PUBLIC_MODELS, *CNN_MODELS)]
    with tempfile.TemporaryDirectory() as scratch:
        for model in (*PUBLIC_MODELS, *CNN_MODELS):
            path = model.locate(given.data, Path(scratch)) if model.name in wanted else None
            if path is not None:
                widths = [int(bits) for bits in given.bits.split(",")]
                print(section(model, path, given.data or Path(), widths, given.solvers, layers=given.layers))


def section(model: BenchmarkModel, path: Path, data: Path, widths: Sequence[int], solvers: str, *, layers: bool) -> str:
    """Return the section of one model, as markdown."""
    arrays = model.samples(data).calibration
    count = len(next(iter(arrays.values())))
    cut = int(count * SOLVED_SHARE)
    context = Context(
        target=load_target("x86"),
        recipe=Recipe(),
        calibration=Rows(arrays, 0, cut),
        acceptance=Rows(arrays, cut, count),
    )
    start = State(model=load_model(path).model, plan=CompressionPlan())
    prepared = run_passes(start, context, *PREPARING)[0]
    rows, contests = [], []
    for bits in widths:
        state = narrowed(prepared, bits)
        plain = output_level(run_passes(state, context, PLAIN, "correct-bias")[0], context) if bits > 1 else None
        started = time.perf_counter()
        solved, reports = run_passes(state, context, f"solve-codes{{solvers={solvers}}}", "correct-bias")
        seconds = time.perf_counter() - started
        wins = ", ".join(f"{m.name.removeprefix('won by ')} {m.value:.0f}" for m in reports[0].metrics[1:])
        cells = [f"W{bits}", _decibels(plain), _decibels(output_level(solved, context))]
        rows.append([*cells, *_means(reports[0].tables[0]), wins, f"{seconds:.0f} s"])
        contests += [layer_table(bits, table) for table in reports[0].tables if layers]
    columns = reports[0].tables[0].columns
    header = [
        "weights",
        "nearest, clip search",
        "solve-codes",
        *(f"layers: {c}" for c in columns),
        "layers won",
        "time",
    ]
    return "\n\n".join((f"## {model.name}", markdown_table(header, rows), *contests))


def layer_table(bits: int, table: Table) -> str:
    """Return the contest of every layer, as markdown."""
    rows = [[r.name, *(_decibels(v) for v in r.values), r.note] for r in table.rows]
    return markdown_table([f"W{bits} layer", *table.columns, "winner, levels"], rows)


def narrowed(state: State, bits: int) -> State:
    """Return a state whose planned weights are to have so many bits."""
    entries = [
        replace(t, spec=replace(t.spec, num_bits=bits), codes=None)
        for t in state.plan.tensors.values()
        if t.role is Role.WEIGHT and t.spec is not None
    ]
    return replace(state, plan=state.plan.with_tensors(*entries))


def simulated(state: State) -> ir.Model:
    """Return the float model with decoded weights and corrected biases."""
    model = clone(state.model)
    taken = set(value_names(model))
    for node in model.graph:
        correct_bias(model.graph, node, state.plan, taken)
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            entry, weight = state.plan.tensors.get(value.name or ""), constant_of(value)
            if entry is None or entry.scale is None or entry.zero_point is None or entry.spec is None or weight is None:
                continue
            codes = weight_codes(weight, entry)
            replace_constant(value, dequantize(codes, entry.scale, entry.zero_point, entry.spec.axis))
    return model


def output_level(state: State, context: Context) -> float | None:
    """Return the SQNR of the outputs on the acceptance rows in dB, all outputs counting alike."""
    samples = context.acceptance
    names = measured_values(state.model)
    runs = [Executor(m, names) for m in (state.model, simulated(state))]
    signal, error = np.zeros(len(names)), np.zeros(len(names))
    for index in range(len(samples) if samples is not None else 0):
        feeds = samples[index] if samples is not None else {}
        exact, rounded = (run.run(feeds) for run in runs)
        for which, name in enumerate(names):
            a, b = (np.asarray(values[name], np.float64) for values in (exact, rounded))
            signal[which] += float(np.square(a).sum())
            error[which] += float(np.square(a - b).sum())
    return power_ratio_db(1.0, float(np.mean(error / signal)))


def run_passes(state: State, context: Context, *names: str) -> tuple[State, tuple[PassReport, ...]]:
    """Return the state behind the named passes, and their reports."""
    return Pipeline(tuple(make_pass(n) for n in names), check=False).run(state, context)


def _means(table: Table) -> list[str]:
    """Return the mean level of all layers for every solver."""
    columns = zip(*(row.values for row in table.rows), strict=True)
    known = [[v for v in column if v is not None] for column in columns]
    return [_decibels(float(np.mean(values)) if values else None) for values in known]


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
