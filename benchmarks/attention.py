"""What attention loses when its projections get few bits, by the solver that chose the codes.

The models are sentence-transformers/all-MiniLM-L6-v2 and the translation model that benchmarks.nmt trains, its encoder
and decoder as one graph. Solvers see lines of Multi30k's training part, and errors are measured on other lines of it.
Scales are per row and levels are the integers, for all solvers alike. Rounded are queries, keys, values and the output
projection, whose rows nothing couples: GPTQ solves it beside BoA, and plain coordinate descent beside aespa.

    python -m benchmarks.attention --data ROOT [--translator FOLDER] [--bits 4,3,2] [--pairs]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.attention_models import Lines, Pairs, Subject, Vectors, minilm, translator
from benchmarks.readers import Arrays
from benchmarks.solvers import run_passes
from benchmarks.tables import markdown_table
from qcompiler.attention_problems import AttentionProblems, Samples, attention_problems
from qcompiler.layer_problems import PlannedWeight, gram_matrices, planned_weights, row_floor
from qcompiler.model.attention import find_attention
from qcompiler.model.attention_parts import AttentionBlock, Projection
from qcompiler.model.edit import clone, constant_of, drop_unused
from qcompiler.model.load import load_model
from qcompiler.plan import CompressionPlan
from qcompiler.quant.gram import damped
from qcompiler.quant.levels import uniform_levels
from qcompiler.quant.solvers.aespa import Aespa
from qcompiler.quant.solvers.boa import Boa
from qcompiler.quant.solvers.by_head import scattered
from qcompiler.quant.solvers.descent import Descent
from qcompiler.quant.solvers.gptq import Gptq
from qcompiler.quant.solvers.nearest import Nearest, nearest
from qcompiler.quant.solvers.problem import LayerProblem, Solution, Solver
from qcompiler.quant.solvers.scales import diagonal_scale, make_problem
from qcompiler.recipe import Recipe
from qcompiler.registry import load_target
from qcompiler.runtime.grams import POSITIONS, GramOptions
from qcompiler.runtime.sessions import open_ir
from qcompiler.state import Context, State

CONTENDERS: dict[str, tuple[Solver, Solver]] = {
    "nearest": (Nearest(), Nearest()),
    "gptq": (Gptq(), Gptq()),
    "descent": (Descent(), Descent()),
    "boa": (Boa(), Gptq()),
    "boa by rows": (Boa(rows=1), Gptq()),
    "aespa": (Aespa(), Descent()),
}
"""Name -> solver of queries, keys and values, and of the output projection."""


@dataclass(frozen=True, eq=False)
class Bench:
    """The model with the moments of its layers, the width its weights are to get, and by which solvers."""

    state: State
    weights: Mapping[str, PlannedWeight]
    grams: Mapping[str, Vectors]
    attention: AttentionProblems
    subject: Subject
    bits: int = 8
    solvers: Sequence[str] = tuple(CONTENDERS)

    def problem(self, name: str) -> LayerProblem:
        """Return a weight's plain problem."""
        weight = self.weights[name]
        floor = row_floor(self.state, weight)
        return make_problem(weight.rows(), damped(self.grams[name]), uniform_levels(self.bits), floor)

    def solved(self, name: str, inner: Solver, outer: Solver) -> Solution:
        """Return what a solver makes of a weight, by head where heads are known and the solver heeds them."""
        problem, heads = self.problem(name), self.attention.heads.get(name, ())
        if not heads:
            return outer.solve(problem)
        if not isinstance(inner, Boa | Aespa):
            return inner.solve(problem)
        parts = [inner.solve(h.problem(problem.weight, problem.levels, problem.floor)) for h in heads]
        return scattered(Solution(np.zeros(problem.weight.shape, np.int8), problem.scale), heads, parts)

    def array(self, name: str, solution: Solution) -> NDArray[np.float32]:
        """Return a rounded weight as the model reads it."""
        weight = self.weights[name]
        moved = np.moveaxis(weight.array, weight.axis or 0, 0).shape
        flat = solution.weight().astype(np.float32).reshape(moved)
        return np.ascontiguousarray(np.moveaxis(flat, 0, weight.axis or 0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the errors of every block, of the sentence vectors, and the clip search's trap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with models/ and text/")
    parser.add_argument("--translator", type=Path, help="folder of the float files of benchmarks.nmt, with samples")
    parser.add_argument("--bits", default="4,3,2", help="widths of the weights, separated by commas")
    parser.add_argument("--solvers", default=",".join(CONTENDERS), help=f"of: {', '.join(CONTENDERS)}")
    parser.add_argument("--pairs", action="store_true", help="score the sentence pairs of STS14 too")
    given = parser.parse_args(arguments)
    if given.data is None and given.translator is None:
        parser.error("give --data, --translator or both")
    solvers = given.solvers.split(",")
    if unknown := [name for name in solvers if name not in CONTENDERS]:
        parser.error(f"--solvers {', '.join(unknown)}: known are {', '.join(CONTENDERS)}")
    pairs = Pairs.read(given.data) if given.pairs and given.data is not None else None
    for subject in subjects(given.data, given.translator):
        wide = make_bench(prepare(subject), subject)
        runs = Runs(wide.state.model, wide.attention.blocks, subject)
        for bits in (int(b) for b in given.bits.split(",")):
            bench = replace(wide, bits=bits, solvers=tuple(solvers))
            print(section(bench, runs, pairs if subject.pooled else None), flush=True)
            print(clip_section(bench), flush=True)


def subjects(data: Path | None, folder: Path | None) -> list[Subject]:
    """Return the models to measure."""
    return [*([minilm(data)] if data is not None else []), *([translator(folder)] if folder is not None else [])]


def prepare(subject: Subject) -> State:
    """Return the placed model."""
    context = Context(target=load_target("x86"), recipe=Recipe(), calibration=subject.solved, acceptance=subject.held)
    start = State(model=load_model(subject.model).model, plan=CompressionPlan())
    return run_passes(start, context, "place")[0]


def make_bench(state: State, subject: Subject) -> Bench:
    """Return the model with the moments of its layers."""
    weights = planned_weights(state, range(1, 9))
    options = GramOptions(positions=POSITIONS)
    solved, held = subject.solved, subject.held
    grams = gram_matrices(state, weights, solved, options)
    blocks, _ = find_attention(state.model)
    inner = [w for w in weights if w.entry.name in {n for b in blocks for n in _weights(b)}]
    sets = Samples(solved, options, grams), Samples(held, options, gram_matrices(state, inner, held, options))
    attention = attention_problems(state, inner, *sets)
    return Bench(state, {w.entry.name: w for w in weights}, grams, attention, subject)


def section(bench: Bench, runs: Runs, pairs: Pairs | None) -> str:
    """Return the figures of one width, as markdown."""
    rows = []
    blocks = bench.attention.blocks
    for name in bench.solvers:
        inner, outer = CONTENDERS[name]
        started = time.perf_counter()
        found = {n: bench.solved(n, inner, outer) for b in blocks for n in _weights(b)}
        seconds = time.perf_counter() - started
        arrays = {n: bench.array(n, solution) for n, solution in found.items()}
        errors = [runs.block_error(block, arrays) for block in blocks]
        cells = [f"{100 * e:.2f}" for e in (*errors, float(np.median(errors)))]
        vectors = partial(runs.vectors, arrays=arrays)
        close = f"{_cosine(runs.exact, vectors(bench.subject.held)):.4f}"
        rows.append([name, *cells, close, *(pairs.cells(vectors) if pairs is not None else []), f"{seconds:.0f} s"])
        print(rows[-1], file=sys.stderr, flush=True)
    header = [
        f"{bench.subject.name} W{bench.bits}, error in %",
        *(f"block {i}" for i in range(len(blocks))),
        "median",
        "cosine",
    ]
    header += [*(["mean of sets", "pooled"] if pairs is not None else []), "time"]
    matched = sum(b.matched for b in blocks)
    return f"{matched} of {len(blocks)} blocks matched\n\n{markdown_table(header, rows)}"


def clip_section(bench: Bench) -> str:
    """Return what nearest rounding loses in the layers behind the activations, by what ranks its clip ratios."""
    rows = []
    for name, weight in bench.weights.items():
        array = weight.rows()
        if weight.layout is None or weight.layout.inputs <= array.shape[1]:
            continue
        gram, levels, floor = damped(bench.grams[name]), uniform_levels(bench.bits), row_floor(bench.state, weight)
        ways = {"plain": np.ones((1, 1, 1)), "diagonal": np.einsum("gii->gi", gram)[:, None, :]}
        lost = []
        for importance in ways.values():
            scale = diagonal_scale(array, importance, levels, floor)
            problem = LayerProblem(weight=array, gram=gram, levels=levels, scale=scale, floor=floor)
            error = nearest(problem).weight() - array
            lost.append(float(((error @ gram) * error).sum() / ((array @ gram) * array).sum()))
        peak = float(np.abs(array).max() / np.sqrt(np.square(array).mean()))
        rows.append([name, f"{peak:.1f}", *(f"{100 * e:.2f}" for e in lost)])
    header = [
        f"{bench.subject.name} W{bench.bits} feed-forward output",
        "peak / rms",
        "error %, plain clip search",
        "by the Gram's diagonal",
    ]
    return markdown_table(header, rows)


# -- what is measured ----------------------------------------------------------------------------------


def _weights(block: AttentionBlock) -> list[str]:
    return [p.weight for p in block.projections.values() if isinstance(p, Projection)]


def _output(block: AttentionBlock) -> str:
    if isinstance(block.output, str):
        raise SystemExit(f"{block.name}: {block.output}")
    return block.output.node.outputs[0].name or ""


class Runs:
    """Sessions whose attention weights are inputs: one up to each block's output, and one of the whole model."""

    def __init__(self, model: ir.Model, blocks: Sequence[AttentionBlock], subject: Subject) -> None:
        names = [n for b in blocks for n in _weights(b)]
        self._float: Arrays = {n: np.asarray(constant_of(model.graph.initializers[n])) for n in names}
        self._sessions = {name: _open(model, name, names) for name in (*map(_output, blocks), subject.output)}
        self._subject = subject
        self._outputs = {b.name: self._tokens(_output(b), {}) for b in blocks}
        self.exact = self.vectors(subject.held, {})

    def block_error(self, block: AttentionBlock, arrays: Arrays) -> float:
        """Return the squared error of a block's output, as a share of its power, with its own weights rounded."""
        found = self._tokens(_output(block), {n: arrays[n] for n in _weights(block)})
        exact = self._outputs[block.name]
        return float(np.square(found - exact).sum() / np.square(exact).sum())

    def vectors(self, samples: Lines, arrays: Arrays) -> Vectors:
        """Return the vectors of the model's output."""
        output = self._subject.output
        found = [self._run(output, samples[i], arrays) for i in range(len(samples))]
        return np.concatenate([self._subject.vectors(f) for f in found])

    def _tokens(self, output: str, arrays: Arrays) -> Vectors:
        held = self._subject.held
        found = [self._run(output, held[i], arrays) for i in range(len(held))]
        return np.concatenate([f.reshape(-1, f.shape[-1]) for f in found])

    def _run(self, output: str, sample: Arrays, arrays: Arrays) -> Vectors:
        session = self._sessions[output]
        every = {**sample, **self._float, **arrays}
        feeds = {i.name: every[i.name] for i in session.get_inputs()}
        return np.asarray(session.run([output], feeds)[0], np.float64)


def _open(model: ir.Model, output: str, names: Sequence[str]) -> ort.InferenceSession:
    """Return a session up to a value, whose inputs are the model's and some of its weights."""
    copy = clone(model)
    made = {o.name: o for n in copy.graph for o in n.outputs}
    copy.graph.outputs[:] = [made[output]]
    for name in names:
        value = copy.graph.initializers.pop(name)
        value.const_value = None
        copy.graph.inputs.append(value)
    drop_unused(copy)
    return open_ir(copy)


def _cosine(first: Vectors, second: Vectors) -> float:
    product = (first * second).sum(1)
    return float((product / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))).mean())


if __name__ == "__main__":
    main()
