"""Rows of embedding tables in 0 to 8 bits: what a sentence model loses, how long a lookup takes, what a session holds.

Usage: python -m benchmarks.embeddings [--data ROOT] [--seeds 0,1,2] [--keep DIR] [--out FILE]

The public part looks rows up in generated tables of 30,000 rows of 384 numbers, beside a float Gather in the same
run, and loads each file in a process of its own. With ``--data`` the word table of all-MiniLM-L6-v2 is compressed
alone: counted on Multi30k (train, en), gradients on its first sentences, and scored on STS14, which nothing is chosen
on. A loss is positive where the compressed model is worse, in points of Spearman's correlation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.scoring import latency_ratios, open_session
from benchmarks.sentence_model import (
    COLUMNS,
    MINILM,
    Feeds,
    Tokens,
    captions,
    read_truth,
    scored,
    sentence_feeds,
    sentence_latency,
    token_counts,
)
from benchmarks.tables import environment, markdown_table, wrapped
from qcompiler.codec.bits import pack
from qcompiler.codec.planes import pack_planes, rows_with
from qcompiler.model.load import load_model
from qcompiler.model.save import save_model
from qcompiler.pipeline import Pipeline
from qcompiler.plan import CompressionPlan, Role, TensorPlan
from qcompiler.recipe import MatchRule, Recipe
from qcompiler.registry import load_target, make_pass
from qcompiler.row_codes import RowCodes, RowKind
from qcompiler.state import Context, Fact, State

ROWS = 30_000
TOKENS = (8, 32)
WORDS = "word_embeddings"
GRADIENT_SENTENCES = 96
BUDGETS = ((1_900_000, (1, 2)), (1_900_000, (0, 2)), (1_600_000, (0, 2)))
"""Bytes of the table with everything that decodes it, and the fewest and most bits of a row."""


# -- lookups -------------------------------------------------------------------------------------------


def lookup_file(folder: Path, name: str, codes: RowCodes | None) -> Path:
    """Write a model that looks rows up in a table, in floats or in codes, and return its path."""
    table = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "length", COLUMNS])]
    node = helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup")
    graph = helper.make_graph([node], "lookup", inputs, outputs, [numpy_helper.from_array(table, "table")])
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    if codes is None:
        return path
    loaded = load_model(path).model
    plan = CompressionPlan().with_tensors(TensorPlan(name="table", role=Role.TABLE, rows=codes))
    state = State(model=loaded, plan=plan, facts=frozenset({Fact.PLACEMENT}))
    context = Context(target=load_target("x86"), recipe=Recipe(targets=("x86",)))
    lowered, _ = Pipeline((make_pass("pack-embeddings"),)).run(state, context)
    return save_model(lowered.model, folder / f"{name}-packed.onnx")[0]


def random_codes(kind: RowKind, bits: npt.NDArray[np.uint8]) -> RowCodes:
    """Return codes of a table of that many rows: times and sizes do not depend on what they stand for."""
    rng, most = np.random.default_rng(0), int(bits.max())
    mean = np.zeros(COLUMNS, np.float32)
    scales: tuple[npt.NDArray[np.floating], ...]
    if kind is RowKind.GRID:
        planes = (pack(rng.integers(0, 2**most, bits.size * COLUMNS).astype(np.uint8), most).reshape(bits.size, -1),)
        scales = (np.ones((bits.size, COLUMNS // 128), np.float32), np.zeros((bits.size, 1), np.float16))
        words = np.zeros((0, 256, 8), np.float32)
        return RowCodes(kind=kind, columns=COLUMNS, bits=bits, planes=planes, scales=scales, tables=words, mean=mean)
    codes = rng.integers(0, 256, (bits.size, most, COLUMNS // 8)).astype(np.uint8)
    words = rng.standard_normal((most, 256, 8)).astype(np.float32)
    stored = 1 if kind is RowKind.PRODUCT else most
    scales = tuple(np.ones((rows_with(bits, p), 1), np.float16) for p in range(stored))
    tables = words if kind is RowKind.PRODUCT else words[:0]
    return RowCodes(
        kind=kind,
        columns=COLUMNS,
        bits=bits,
        planes=pack_planes(codes, bits),
        scales=scales,
        tables=tables,
        mean=mean,
    )


def forms() -> dict[str, RowCodes]:
    """Return the ways in which rows are stored and looked up."""
    rng = np.random.default_rng(1)

    def even(bits: int) -> npt.NDArray[np.uint8]:
        return np.full(ROWS, bits, np.uint8)

    def shares(*parts: float) -> npt.NDArray[np.uint8]:
        return rng.choice(len(parts), ROWS, p=parts).astype(np.uint8)

    return {
        "words, 1 bit": random_codes(RowKind.PRODUCT, even(1)),
        "grid, 2 bits": random_codes(RowKind.GRID, even(2)),
        "grid, 4 bits": random_codes(RowKind.GRID, even(4)),
        "grid, 8 bits": random_codes(RowKind.GRID, even(8)),
        "words, 1 and 2 bits": random_codes(RowKind.PRODUCT, shares(0, 0.8, 0.2)),
        "words, 0 to 2 bits": random_codes(RowKind.PRODUCT, shares(0.2, 0.6, 0.2)),
        "words, 1 to 3 bits": random_codes(RowKind.PRODUCT, shares(0, 0.8, 0.15, 0.05)),
        "signs, 1 and 2 bits": random_codes(RowKind.BINARY, shares(0, 0.8, 0.2)),
    }


_LOAD = """
import resource, sys, onnxruntime
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before = held()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(held() - before)
"""


def loaded_bytes(path: Path) -> int:
    """Return the memory that a process holds more after loading a session than before; the least of three."""
    command = [sys.executable, "-c", _LOAD, str(path)]
    runs = (subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3))
    return min(int(out) for out in runs)


def lookup_section(folder: Path) -> str:
    """Return latency ratios, sizes and memory of the forms, as markdown."""
    kinds = forms()
    paths = [
        lookup_file(folder, "float", None),
        *(lookup_file(folder, f"t{i}", c) for i, c in enumerate(kinds.values())),
    ]
    sessions = [open_session(path) for path in paths]
    found = [latency_ratios(sessions, {"ids": _ids(tokens)}) for tokens in TOKENS]
    empty = loaded_bytes(_without_table(folder))
    rows = []
    for number, (name, path) in enumerate(zip(("float Gather", *kinds), paths, strict=True)):
        ratios = [f"{ratio[number].minimum:.2f}" for ratio in found]
        more = (loaded_bytes(path) - empty) / 1e6
        rows.append([name, f"{path.stat().st_size / 1e6:.2f}", *ratios, f"{more:.1f}"])
    header = ("rows", "file MB", *(f"{n} tokens" for n in TOKENS), "session adds MB")
    about = (
        f"Lookups in a table of {ROWS} rows of {COLUMNS} numbers, one thread: time over that of a float Gather, of the "
        "fastest calls interleaved in one process; and what loading adds to a process beyond an empty session."
    )
    return f"## Lookups\n\n{wrapped(about)}\n\n{markdown_table(header, rows)}"


def _ids(tokens: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(0, ROWS, (1, tokens))


def _without_table(folder: Path) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "empty", infos[:1], infos[1:])
    path = folder / "empty.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# -- the sentence model --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentences:
    """Sentences as a dataset, one a sample."""

    tokens: Tokens
    source: str = "benchmark"
    fingerprint: str = "0" * 64
    preprocessing: str = ""
    notes: tuple[str, ...] = ()
    rows_per_sample: int = 1
    row_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int, /) -> Feeds:
        return sentence_feeds([self.tokens[index]])


def compiled(data: Path, tokens: Tokens, folder: Path, asked: Recipe) -> tuple[Path, int]:
    """Compress the word table alone; return the file, and the bytes of the table with all that decodes it."""
    loaded = load_model(data / MINILM)
    calibration = Sentences(tokens[:GRADIENT_SENTENCES])
    context = Context(target=load_target("x86"), recipe=asked, calibration=calibration)
    state = State(model=loaded.model, plan=CompressionPlan())
    passes = tuple(make_pass(name) for name in ("place", "embedding-bits", "pack-embeddings"))
    lowered, _ = Pipeline(passes).run(state, context)
    name = f"{asked.embedding_bytes}-{(asked.embedding_bits or (0,))[0]}-{asked.seed}.onnx"
    path = save_model(lowered.model, folder / name)[0]
    kept = (data / MINILM).stat().st_size - _table_bytes(data / MINILM)
    return path, path.stat().st_size - kept


def _table_bytes(path: Path) -> int:
    found = (t for t in onnx.load(path).graph.initializer if WORDS in t.name)
    return sum(int(np.prod(t.dims)) * 4 for t in found)


def sentence_section(data: Path, folder: Path, seeds: Sequence[int]) -> str:
    """Return what the sentence model loses at every budget, as markdown."""
    tokens, truth = captions(data), read_truth(data)
    np.save(folder / "counts.npy", token_counts(tokens))
    before = truth.correlations(truth.original)
    rows = [["float", "46.88", *(f"{x:.2f}" for x in before), "1", "1"]]
    rules = (MatchRule(pattern=f"^(?!.*{WORDS})", keep_float=True),)
    recipe = Recipe(
        targets=("x86",), rules=rules, token_counts=str(folder / "counts.npy"), embedding_bits=BUDGETS[0][1]
    )
    for size, bits in BUDGETS:
        results, paths, stored = [], [], 0
        for seed in seeds:
            asked = replace(recipe, embedding_bits=bits, embedding_bytes=size, seed=seed)
            path, stored = compiled(data, tokens, folder, asked)
            results.append(scored(path, truth.tokens))
            paths.append(path)
            print(f"{size} seed {seed}: {stored} bytes, losses {truth.losses(results[-1:])}", file=sys.stderr)
        name = f"{bits[0]} to {bits[1]} bits"
        rows.append([name, f"{stored / 1e6:.3f}", *truth.cells(results), *sentence_latency(data, paths[:1])])
    header = ("rows", "table MB", "pooled", "mean of sets", "cosine", "latency, 32 tokens")
    about = (
        "all-MiniLM-L6-v2, its word table alone (everything that decodes it counted), scored on STS14: correlations of "
        "the float model, and below them losses in points, the mean of the seeds with its 95 % interval; the mean "
        "cosine of sentence vectors to the float model's; time of the whole model over that with the float table."
    )
    return f"## A sentence model\n\n{wrapped(about)}\n\n{markdown_table(header, rows)}"


def _arguments(argv: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder of the benchmark data")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the words, separated by commas")
    parser.add_argument("--keep", type=Path, help="keep what was written in this folder")
    parser.add_argument("--out", type=Path, help="write the report to this file")
    return parser.parse_args(None if argv is None else list(argv))


def main(argv: Iterable[str] | None = None) -> int:
    """Run the benchmark and print or write its report."""
    arguments = _arguments(argv)
    onnxruntime.set_default_logger_severity(3)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        parts = [lookup_section(folder)]
        if arguments.data is not None:
            parts.append(sentence_section(arguments.data, folder, seeds))
    command = "python -m benchmarks.embeddings" + (" --data ROOT" if arguments.data else "")
    report = "# Embedding rows below 8 bits\n\n" + "\n".join([*parts, environment(command)])
    if arguments.out is None:
        print(report)
    else:
        arguments.out.write_text(report, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
