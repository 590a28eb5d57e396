"""Scales of a compiled decoder, tuned and put in its place: what ``tune-scales`` and ``apply-scales`` make of it.

Source: Kim et al., "Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer
Quantization" (NeurIPS 2023). Differs: the scales learn what the float decoder answers on training lines, so the task
is the one that the model was compiled for, and what is measured is what compression took and scales give back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.nmt.__main__ import default_cache
from benchmarks.nmt.contenders import CONTENDERS, FLOAT, LONGEST, prepare
from benchmarks.nmt.corpus import encode, padded, read_part
from benchmarks.nmt.decoding import first_feeds, open_sessions, shifted
from benchmarks.nmt.scoring import score
from benchmarks.nmt.training import subwords
from benchmarks.process import run_measured
from benchmarks.readers import save_arrays
from benchmarks.tables import markdown_table


def task_samples(files: tuple[Path, Path], tokenizer: Tokenizer, data: Path, rows: int, path: Path) -> None:
    """Write what a decoder reads on some training lines.

    Args:
        files: encoder and decoder; the encoder's output is among what the decoder reads.
        tokenizer: their subwords.
        data: the folder that has ``text/multi30k``.
        rows: lines, spread over the training part.
        path: the .npz to write.
    """
    lines = read_part(data, "train")
    pairs = zip(encode(tokenizer, lines.source), encode(tokenizer, lines.target), strict=True)
    short = [pair for pair in pairs if max(map(len, pair)) <= LONGEST]
    chosen = [short[place] for place in np.linspace(0, len(short) - 1, min(rows, len(short))).astype(int)]
    feeds = first_feeds(open_sessions(*files), padded([source for source, _ in chosen]))
    save_arrays(path, {**feeds, "tokens": shifted(padded([target for _, target in chosen]))})


def tuned(result: Path, model: Path, samples: Path, steps: int, folder: Path) -> Path:
    """Tune the scales of a result and return the model that has them.

    Raises:
        SystemExit: a command failed.
    """
    scales, output = folder / "scales.npz", folder / "tuned.onnx"
    words = ["tune-scales", str(result), str(model), "--data", str(samples), "--steps", str(steps)]
    for path in (scales, output):
        path.unlink(missing_ok=True)
    tune = [*words, "-o", str(scales)]
    for command in (tune, ["apply-scales", str(result), str(scales), "-o", str(output)]):
        measured = run_measured([sys.executable, "-m", "qcompiler", *command], folder)
        print(measured.output, file=sys.stderr)
        if measured.exit_code:
            raise SystemExit(measured.failure)
    return output


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table: the decoder as it was compiled, and with tuned scales."""
    names = [contender.name for contender in CONTENDERS if contender.words is not None]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nmt.task_scales", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that has text/multi30k")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="as of benchmarks.nmt, which ran before")
    parser.add_argument("--contender", choices=names, default=names[0], help="whose decoder; default: %(default)s")
    parser.add_argument("--rows", type=int, default=1000, help="training lines to learn from; default: %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="mini-batches; default: %(default)s")
    given = parser.parse_args(argv)
    cache, data = given.cache.resolve(), given.data.resolve()
    base = prepare(cache / FLOAT, subwords(data, cache), data)
    contender = next(c for c in CONTENDERS if c.name == given.contender)
    made = contender.folder(cache, 0)
    if not (made / "decoder" / "plan.npz").is_file():
        parser.error(f"{made} has no compiled decoder; run python -m benchmarks.nmt with this contender first")
    folder = made / "scales"
    folder.mkdir(exist_ok=True)
    samples = folder / "task.npz"
    task_samples((base.encoder, base.decoder), subwords(data, cache), data, given.rows, samples)
    found = tuned(made / "decoder", base.decoder, samples, given.steps, folder)
    rows = []
    for name, decoder in (("as compiled", made / "decoder" / "model.onnx"), ("tuned", found)):
        scored = score((made / "encoder" / "model.onnx", decoder), cache / "subwords.json", data, "val", 1)
        rows.append((name, f"{decoder.stat().st_size / 1e6:.3f}", f"{scored.bleu:.2f}", f"{scored.entropy:.4f}"))
    size = (folder / "scales.npz").stat().st_size
    print(markdown_table((f"decoder of {contender.name}", "MB", "BLEU on val, greedy", "nats a token"), rows))
    print(f"The file of scales has {size} bytes.")


if __name__ == "__main__":
    main()
