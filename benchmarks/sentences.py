"""A whole sentence model in few megabytes: what all-MiniLM-L6-v2 loses at four sizes of the file, and in 8 bits.

Usage: python -m benchmarks.sentences --data ROOT [--seeds 0,1,2] [--settings 8.0,W8A8] [--keep DIR] [--out FILE]

``qcompile`` gets a size limit and shares it between the table and the layers. It is calibrated on captions of Multi30k
and, for every second sample, on captions with half of their words exchanged for random ones, because the sentences that
score, STS14, are no captions. Two of the files are also trained further, by distillation on the same sentences. Beside
it stand tools of ``onnxruntime.quantization``, which read no samples for these models. What is compiled is kept in
``--keep``, and not compiled again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.compiler import run_with_words
from benchmarks.rivals import BLOCKS4, DYNAMIC, run_rival
from benchmarks.sentence_model import (
    MINILM,
    VOCABULARY,
    Tokens,
    Truth,
    captions,
    read_truth,
    scored,
    sentence_feeds,
    sentence_latency,
    token_counts,
)
from benchmarks.tables import environment, markdown_table, wrapped
from qcompiler.passes import WITH_DATA

SENTENCES = 1600
CALIBRATION = 1200
"""Sentences that are drawn from the captions, and those of them that ``qcompile`` may decide by."""
LENGTH = 14
"""Tokens of every calibration sentence, [CLS] and [SEP] among them: what captions have most often."""
EXCHANGED = 0.5
FIRST_WORD = 1000
"""Identifiers below it are marks and unused places."""
NO_FASTER = ("--max-latency-ratio", "1.2")
"""Weights alone: products run in float and take the time of the original, which is measured to a few percent."""
NO_FLOOR = "--min-sqnr=-1000"
"""The SQNR of token vectors is not what is asked for here: sentence vectors are compared."""
MINUTES = "6"
"""How long distilled files are trained further, on the calibration sentences and without labels."""
WEIGHTS_ONLY = """[match.'MatMul']
scheme = "weight_only"
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to compile the model.

    Attributes:
        name: what the command line and folders call it.
        title: what the tables call it.
        words: options of ``qcompile``.
        recipe: the text of a ``qcompile.toml``.
        start: the setting whose plan is trained further; "" decides anew.
    """

    name: str
    title: str
    words: tuple[str, ...]
    recipe: str = ""
    start: str = ""


PASSES = ",".join((*WITH_DATA, "solve-on-prefix"))
"""The default, and behind it codes solved on what the compressed table and layers give."""


def _limited(size: str, bits: str, recipe: str = "") -> Setting:
    words: tuple[str, ...] = ("--max-size", f"{size}MB", "--embedding-bits", bits, "--passes", PASSES)
    if recipe:
        words += NO_FASTER
    return Setting(size, f"at most {size} MB" + (", weights alone" if recipe else ""), words, recipe)


def _distilled(size: str) -> Setting:
    words = ("--fine-tune", MINUTES)
    return Setting(f"{size} distilled", f"at most {size} MB, distilled for {MINUTES} minutes", words, start=size)


SETTINGS = (
    _limited("6.8", "1-4"),
    _distilled("6.8"),
    _limited("8.0", "1-4"),
    _distilled("8.0"),
    _limited("12.2", "1-6", WEIGHTS_ONLY),
    _limited("17", "1-8", WEIGHTS_ONLY),
    Setting("W8A8", "W8A8", ("--bits", "W8A8")),
)


def write_calibration(path: Path, tokens: Tokens) -> None:
    """Write the calibration sentences: captions of one length, so that searches can batch them."""
    rng = np.random.default_rng(0)
    fitting = np.asarray([sentence for sentence in tokens if len(sentence) == LENGTH], np.int64)
    chosen = fitting[np.linspace(0, len(fitting) - 1, SENTENCES).astype(int)]
    exchanged = rng.random(chosen.shape) < EXCHANGED
    exchanged[::2] = exchanged[:, 0] = exchanged[:, -1] = False
    chosen = np.where(exchanged, rng.integers(FIRST_WORD, VOCABULARY, chosen.shape), chosen)
    np.savez(path, **sentence_feeds(chosen.tolist()))  # type: ignore[arg-type]


def compiled(setting: Setting, seed: int, data: Path, folder: Path) -> Path | None:
    """Return the file of one setting, compiled in a process of its own where it is not kept; None where that failed.

    Args:
        setting: what is asked for.
        seed: of everything that is drawn.
        data: the folder of the benchmark data.
        folder: what is kept; has the calibration sentences and the counts.
    """
    output = folder / f"{setting.name.replace(' ', '-')}-s{seed}"
    kept = output / "model.onnx"
    if kept.is_file():
        return kept
    words = ["--target", "x86", *setting.words, NO_FLOOR, "--calibration-samples", str(CALIBRATION)]
    words += ["--seed", str(seed)]
    if "--embedding-bits" in setting.words:
        words += ["--token-counts", str(folder / "counts.npy")]
    if setting.start:
        start = next(s for s in SETTINGS if s.name == setting.start)
        if compiled(start, seed, data, folder) is None:
            return None
        words += ["--plan", str(folder / f"{start.name}-s{seed}")]
    if setting.recipe:
        recipe = folder / f"{setting.name}.toml"
        recipe.write_text(setting.recipe, encoding="utf-8")
        words += ["--config", str(recipe)]
    run = run_with_words(setting.name, data / MINILM, folder / "calibration.npz", words, output)
    if run.notes:
        print(f"{setting.name}, seed {seed}: {run.notes}", file=sys.stderr)
    return run.model


def row(name: str, paths: Sequence[Path], truth: Truth) -> list[str]:
    """Return what files of one kind lose, as a row of the table."""
    results = [scored(path, truth.tokens) for path in paths]
    size = max(path.stat().st_size for path in paths)
    print(f"{name}: {size} bytes, losses {truth.losses(results)}, {list(map(truth.cosine, results))}", file=sys.stderr)
    return [name, str(len(paths)), f"{size / 1e6:.2f}", *truth.cells(results)]


def section(data: Path, folder: Path, settings: Sequence[Setting], seeds: Sequence[int]) -> str:
    """Return the table of all settings and contenders, as markdown."""
    tokens, truth = captions(data), read_truth(data)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "counts.npy", token_counts(tokens))
    write_calibration(folder / "calibration.npz", tokens)
    before = truth.correlations(truth.original)
    size = (data / MINILM).stat().st_size
    kinds: dict[str, list[Path]] = {}
    for setting in settings:
        found = [path for seed in seeds if (path := compiled(setting, seed, data, folder)) is not None]
        if found:
            kinds[setting.title] = found
    for method in (DYNAMIC, BLOCKS4):
        rival = run_rival(method, data / MINILM, folder / "calibration.npz", folder)
        if rival.model is not None:
            kinds[f"onnxruntime, {method}"] = [rival.model]
    rows = [row(name, paths, truth) for name, paths in kinds.items()]
    # All in one process, by turns: a machine that is busy for a while is so for all of them.
    for line, latency in zip(rows, sentence_latency(data, [paths[0] for paths in kinds.values()]), strict=True):
        line.append(latency)
    rows.insert(0, ["float", "", f"{size / 1e6:.2f}", *(f"{x:.2f}" for x in before), "1", "1"])
    header = ("file", "seeds", "MB", "pooled", "mean of sets", "cosine", "latency, 32 tokens")
    about = (
        "all-MiniLM-L6-v2 as a whole, scored on STS14: correlations of the float model, and below them losses in "
        "points, the mean of the seeds with its 95 % interval; the smallest of the seeds' mean cosines of sentence "
        "vectors to the float model's; time of a sentence over that of the float model, one thread."
    )
    return f"{wrapped(about)}\n\n{markdown_table(header, rows)}"


def _arguments(argv: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sentences", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the benchmark data")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--settings", default=",".join(s.name for s in SETTINGS), help="some of: %(default)s")
    parser.add_argument("--keep", type=Path, help="keep what was written in this folder, and take what is there")
    parser.add_argument("--out", type=Path, help="write the report to this file")
    return parser.parse_args(None if argv is None else list(argv))


def main(argv: Iterable[str] | None = None) -> int:
    """Run the benchmark and print or write its report."""
    arguments = _arguments(argv)
    onnxruntime.set_default_logger_severity(3)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    settings = [s for s in SETTINGS if s.name in arguments.settings.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.keep or Path(scratch)).resolve()
        table = section(arguments.data.resolve(), folder, settings, seeds)
    report = "\n".join(
        ["# A sentence model in few megabytes", "", table, environment("python -m benchmarks.sentences --data ROOT")]
    )
    if arguments.out is None:
        print(report)
    else:
        arguments.out.write_text(report, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
