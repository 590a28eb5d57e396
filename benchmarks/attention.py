"""What attention loses when its projections get few bits, by the solver that chose the codes.

The model is sentence-transformers/all-MiniLM-L6-v2. Solvers see captions of Multi30k's training part, and errors are
measured on other captions of it. Scales are per row and levels are the integers, for all solvers alike. Rounded are
queries, keys, values and the output projection, whose rows nothing couples: GPTQ solves it beside BoA, and plain
coordinate descent beside aespa.

    python -m benchmarks.attention --data ROOT [--bits 4,3,2] [--pairs]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from benchmarks import readers
from benchmarks.readers import Arrays
from benchmarks.solvers import PREPARING, narrowed, run_passes
from benchmarks.tables import markdown_table
from qcompiler.attention_problems import AttentionProblems, Samples, attention_problems
from qcompiler.layer_problems import PlannedWeight, gram_matrices, planned_weights, row_floor
from qcompiler.model.attention_parts import AttentionBlock, Projection
from qcompiler.model.edit import clone, replace_constant
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
from qcompiler.runtime.capture import Executor
from qcompiler.runtime.grams import POSITIONS, GramOptions
from qcompiler.state import Context, State

MODEL = "models/all_minilm_l6_v2.onnx"
OUTPUT = "last_hidden_state"
CAPTIONS = "text/multi30k/train.lc.norm.tok.en.gz"
TOKENIZER = "text/minilm_tokenizer.json"
SOLVED, HELD = 192, 96
"""Captions that solvers see, and those behind them, on which errors are measured."""

CONTENDERS: dict[str, tuple[Solver, Solver]] = {
    "nearest": (Nearest(), Nearest()),
    "gptq": (Gptq(), Gptq()),
    "descent": (Descent(), Descent()),
    "boa": (Boa(), Gptq()),
    "boa, rows one by one": (Boa(rows=1), Gptq()),
    "aespa": (Aespa(), Descent()),
}
"""Name -> solver of queries, keys and values, and of the output projection."""

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Sentences:
    """Sentences of their own length, a sample each."""

    tokens: Sequence[Sequence[int]]
    source: str = "captions"
    fingerprint: str = ""
    preprocessing: str = ""
    notes: tuple[str, ...] = ()
    rows_per_sample: int = 1
    row_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int, /) -> Arrays:
        identifiers = np.asarray([self.tokens[index]], np.int64)
        return {
            "input_ids": identifiers,
            "attention_mask": np.ones_like(identifiers),
            "token_type_ids": np.zeros_like(identifiers),
        }


@dataclass(frozen=True, eq=False)
class Bench:
    """The model at one width, with the moments of its layers."""

    state: State
    weights: Mapping[str, PlannedWeight]
    grams: Mapping[str, Vectors]
    attention: AttentionProblems
    held: Sentences
    bits: int

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the errors of every block, of the sentence vectors, and the clip search's trap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with models/ and text/")
    parser.add_argument("--bits", default="4,3,2", help="widths of the weights, separated by commas")
    parser.add_argument("--pairs", action="store_true", help="score the sentence pairs of STS14 too")
    given = parser.parse_args(arguments)
    prepared, solved, held = prepare(given.data)
    pairs = Pairs.read(given.data) if given.pairs else None
    for bits in (int(b) for b in given.bits.split(",")):
        bench = make_bench(narrowed(prepared, bits), bits, solved, held)
        print(section(bench, pairs))
        if bits <= 4:
            print(clip_section(bench))


def prepare(data: Path) -> tuple[State, Sentences, Sentences]:
    """Return the placed model and the captions to solve on and to measure on."""
    tokens = readers.tokenize(data / TOKENIZER, readers.gzip_lines(data / CAPTIONS, SOLVED + HELD))
    solved, held = Sentences(tokens[:SOLVED]), Sentences(tokens[SOLVED:])
    context = Context(target=load_target("x86"), recipe=Recipe(), calibration=solved, acceptance=held)
    start = State(model=load_model(data / MODEL).model, plan=CompressionPlan())
    return run_passes(start, context, *PREPARING)[0], solved, held


def make_bench(state: State, bits: int, solved: Sentences, held: Sentences) -> Bench:
    """Return a narrowed model with its moments."""
    weights = planned_weights(state, range(1, 9))
    options = GramOptions(positions=POSITIONS)
    sets = [Samples(s, options, gram_matrices(state, weights, s, options)) for s in (solved, held)]
    attention = attention_problems(state, weights, sets[0], sets[1])
    return Bench(state, {w.entry.name: w for w in weights}, sets[0].grams, attention, held, bits)


def section(bench: Bench, pairs: Pairs | None) -> str:
    """Return the figures of one width, as markdown."""
    rows = []
    blocks = bench.attention.blocks
    exact = [_outputs(Executor(bench.state.model, [_output(b), OUTPUT]), bench.held, _output(b)) for b in blocks]
    vectors = _vectors(bench.state.model, bench.held)
    for name, (inner, outer) in CONTENDERS.items():
        started = time.perf_counter()
        found = {n: bench.solved(n, inner, outer) for b in blocks for n in _weights(b)}
        seconds = time.perf_counter() - started
        errors = []
        for block, original in zip(blocks, exact, strict=True):
            model = rounded(bench, {n: found[n] for n in _weights(block)})
            output = _outputs(Executor(model, [_output(block)]), bench.held, _output(block))
            errors.append(float(np.square(output - original).sum() / np.square(original).sum()))
        whole = rounded(bench, found)
        cells = [f"{100 * e:.2f}" for e in (*errors, float(np.median(errors)))]
        close = f"{_cosine(vectors, _vectors(whole, bench.held)):.4f}"
        rows.append([name, *cells, close, *(pairs.cells(whole) if pairs is not None else []), f"{seconds:.0f} s"])
    header = [f"W{bench.bits}, error in %", *(f"block {i}" for i in range(len(blocks))), "median", "cosine"]
    header += [*(["mean of sets", "pooled"] if pairs is not None else []), "time"]
    matched = sum(b.matched for b in blocks)
    return f"{matched} of {len(blocks)} blocks matched\n\n{markdown_table(header, rows)}"


def rounded(bench: Bench, solutions: Mapping[str, Solution]) -> ir.Model:
    """Return the model with some weights rounded and decoded."""
    model = clone(bench.state.model)
    for name, solution in solutions.items():
        weight, value = bench.weights[name], model.graph.initializers[name]
        array = solution.weight().astype(np.float32)
        moved = np.moveaxis(weight.array, weight.axis or 0, 0).shape
        replace_constant(value, np.ascontiguousarray(np.moveaxis(array.reshape(moved), 0, weight.axis or 0)))
    return model


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
        f"W{bench.bits} feed-forward output",
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


def _outputs(run: Executor, samples: Sentences, name: str) -> Vectors:
    """Return a value of all samples, one row per token."""
    found = [np.asarray(run.run(samples[i])[name], np.float64) for i in range(len(samples))]
    return np.concatenate([f.reshape(-1, f.shape[-1]) for f in found])


def _vectors(model: ir.Model, samples: Sentences) -> Vectors:
    """Return a vector for every sentence: the mean over its tokens."""
    run = Executor(model, [OUTPUT])
    return np.stack([np.asarray(run.run(samples[i])[OUTPUT], np.float64)[0].mean(0) for i in range(len(samples))])


def _cosine(first: Vectors, second: Vectors) -> float:
    product = (first * second).sum(1)
    return float((product / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))).mean())


@dataclass(frozen=True, eq=False)
class Pairs:
    """The sentence pairs of STS14 with the set that each belongs to."""

    first: Sentences
    second: Sentences
    gold: Vectors
    sets: NDArray[np.str_]

    @classmethod
    def read(cls, data: Path) -> Pairs:
        """Read them."""
        path = data / "text/sts14_pairs.tsv"
        first, second, gold = readers.sentence_pairs(path)
        sets = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]
        tokenize: Callable[[list[str]], Sentences] = lambda texts: Sentences(readers.tokenize(data / TOKENIZER, texts))  # noqa: E731
        return cls(tokenize(first), tokenize(second), np.asarray(gold, np.float64), np.asarray(sets))

    def cells(self, model: ir.Model) -> list[str]:
        """Return 100 times the mean over the sets, and the pooled, Spearman correlation with the gold."""
        from scipy.stats import spearmanr  # here, because nothing else needs it

        one, other = _vectors(model, self.first), _vectors(model, self.second)
        close = (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
        each = [spearmanr(close[self.sets == s], self.gold[self.sets == s])[0] for s in sorted(set(self.sets))]
        return [f"{100 * float(v):.2f}" for v in (np.mean(each), spearmanr(close, self.gold)[0])]


if __name__ == "__main__":
    main()
