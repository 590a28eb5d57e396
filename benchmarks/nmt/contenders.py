"""What compresses the translation model: settings of ``qcompile``, the paper's bits, and onnxruntime's quantizer.

``qcompile`` decides on encoder and decoder as one graph, so that they share one budget and one set of codes for the
table that both read, and writes the two files from that plan. The constants of both lie in a file beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.compiler import run_with_words
from benchmarks.nmt.corpus import BEGIN, encode, padded, read_part
from benchmarks.nmt.decoding import first_feeds, open_sessions, shifted
from benchmarks.nmt.export import DECODER, ENCODER, WHOLE
from benchmarks.nmt.sharing import share
from benchmarks.process import ToolRun
from benchmarks.readers import save_arrays
from benchmarks.rivals import DYNAMIC, run_rival
from qcompiler.passes import WITH_DATA

FLOAT, CONTROL, RIVAL, PAPER = "float", "float trained on", "onnxruntime dynamic", "paper"
COUNTS = "counts.npy"
SAMPLES = 6000
"""Training lines that contenders may read, of which those that are not fine-tuned take ``CALIBRATION``."""
CALIBRATION = 256
LONGEST = 20
"""Longest of these lines, in subwords: all are padded to it, and most lines of the corpus are shorter."""
TRAINED_ON = 5500
"""Of these lines, what a contender that is distilled learns from."""
MINUTES = 8
"""How long it does, by the clock, on two threads."""
FEW = 16
"""Lines on which the two written files are compared with the float ones."""
NO_FLOORS = ("--min-sqnr=-1000", "--max-latency-ratio", "1000")
"""Floors that stop nothing, so that no repair adds bits."""

PAPER_BITS = {
    r"^encoder\.\d+\.self_attention": 3,
    r"^encoder\.\d+\.feed_forward": 4,
    r"^decoder\.\d+\.self_attention": 2,
    r"^decoder\.\d+\.cross_attention": 3,
    r"^decoder\.\d+\.feed_forward": 1,
}
"""Sublayer -> bits, of layers by name.

Source: Chung et al., "Extremely Low Bit Transformer Quantization for On-Device Neural Machine Translation" (Findings
of EMNLP 2020), for attention and feed-forward sublayers. The rows of the table have 1 to 4 bits, in four equal parts
by frequency (b = 4, r = 1). Differs: levels are uniform and found by solvers, rows are sums of learned vectors,
activations have 8 bits, and nothing is trained again.
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to compress both files.

    Attributes:
        name: what the command line and the tables call it.
        words: options of ``qcompile``, but for model, data and seed; None where it is not ``qcompile``.
        layer_bits: patterns of layers by name, and their bits.
        start: the contender whose plan is trained further; "" decides anew.
    """

    name: str
    words: tuple[str, ...] | None
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    start: str = ""

    def folder(self, cache: Path, seed: int) -> Path:
        """Return where what it makes is kept."""
        return cache / f"{_slug(self.name)}-s{seed}"


def _slug(name: str) -> str:
    return name.replace(" ", "_").replace(":", "-").replace(",", "")


def _contender(
    name: str, *words: str, samples: int = CALIBRATION, bits: Mapping[str, int] | None = None, start: str = ""
) -> Contender:
    fixed = ("--target", "x86", "--calibration-samples", str(samples), *NO_FLOORS)
    return Contender(name, (*fixed, *words), bits or {}, start)


def _rows(least: int, most: int, size: str) -> tuple[str, ...]:
    return "--embedding-bits", f"{least}-{most}", "--embedding-bytes", size, "--token-counts", COUNTS


ON_PREFIX = ",".join((*WITH_DATA, "solve-on-prefix"))
CLUSTERS = ",".join(p if p != "embedding-bits" else "embedding-bits{allocation=clusters}" for p in WITH_DATA)

CONTENDERS = (
    Contender(FLOAT, None),
    Contender(CONTROL, None),
    Contender(RIVAL, None),
    *(_contender(bits, "--bits", bits) for bits in ("W8A8", "W4A8", "W3A8", "W2A8")),
    _contender("W8A8 --decode", "--bits", "W8A8", "--decode"),
    _contender("9.5x", "--max-size", "2.58MB", *_rows(1, 3, "700KB")),
    _contender("11.8x", "--max-size", "2.09MB", "--passes", ON_PREFIX, *_rows(1, 3, "600KB")),
    _contender("11.8x distilled", "--fine-tune", str(MINUTES), samples=TRAINED_ON, start="11.8x"),
    _contender(PAPER, "--bits", "W4A8", "--passes", CLUSTERS, *_rows(1, 4, "700KB"), bits=PAPER_BITS),
)


@dataclass(frozen=True, slots=True)
class Originals:
    """The float files and what they are compressed with.

    Attributes:
        encoder, decoder: the files that are deployed.
        whole: both as one graph, on which is decided.
        encoder_data, decoder_data, whole_data: .npz of their inputs on training lines.
        counts: .npy, how often every entry of the table is read in the training lines of both languages.
    """

    encoder: Path
    decoder: Path
    whole: Path
    encoder_data: Path
    decoder_data: Path
    whole_data: Path
    counts: Path


def prepare(folder: Path, tokenizer: Tokenizer, data: Path) -> Originals:
    """Write the samples of the float files beside them, where they are not.

    Lines are spread over the training part. The decoder reads all tokens of a reference at once, which its caches,
    empty at first, do not change.
    """
    samples = (folder / name for name in ("encoder.npz", "decoder.npz", "whole.npz", COUNTS))
    found = Originals(folder / ENCODER, folder / DECODER, folder / WHOLE, *samples)
    if found.counts.is_file():
        return found
    lines = read_part(data, "train")
    sources, targets = encode(tokenizer, lines.source), encode(tokenizer, lines.target)
    short = [row for row, pair in enumerate(zip(sources, targets, strict=True)) if max(map(len, pair)) <= LONGEST]
    rows = [short[place] for place in np.linspace(0, len(short) - 1, min(SAMPLES, len(short))).astype(int)]
    source = padded([sources[row] for row in rows])
    tokens = shifted(padded([targets[row] for row in rows]))
    save_arrays(found.whole_data, {"source": source, "tokens": tokens})
    few = slice(0, len(rows), max(len(rows) // FEW, 1))
    save_arrays(found.encoder_data, {"source": source[few]})
    feeds = first_feeds(open_sessions(found.encoder, found.decoder), source[few])
    save_arrays(found.decoder_data, {**feeds, "tokens": tokens[few]})
    read = np.concatenate([np.concatenate(side) for side in (sources, targets)])
    counts = np.bincount(read, minlength=tokenizer.get_vocab_size())
    counts[BEGIN] += len(targets)
    np.save(found.counts, counts)
    return found


@dataclass(frozen=True, slots=True)
class Compressed:
    """What became of a contender.

    Attributes:
        files: encoder, decoder, and what they share; empty where a run wrote nothing.
        runs: of the tools.
    """

    files: tuple[Path, ...]
    runs: tuple[ToolRun, ...]


def compress(contender: Contender, originals: Originals, seed: int, folder: Path) -> Compressed:
    """Run a contender on encoder and decoder, into a folder of its own.

    Args:
        contender: neither FLOAT nor CONTROL.
        originals: the float files.
        seed: of ``qcompile``.
        folder: where to write, beside the folder of the contender that it starts from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = ((originals.encoder, originals.encoder_data), (originals.decoder, originals.decoder_data))
    runs = []
    if contender.words is None:
        for model, samples in pairs:
            (folder / model.stem).mkdir(exist_ok=True)
            runs.append(run_rival(DYNAMIC, model, samples, folder / model.stem))
    else:
        words = [str(originals.counts) if word == COUNTS else word for word in contender.words]
        words += ["--seed", str(seed), *_recipe_words(contender, folder)]
        if contender.start:
            words += ["--plan", str(folder.with_name(f"{_slug(contender.start)}-s{seed}") / "whole")]
        decided = folder / "whole"
        runs.append(run_with_words(contender.name, originals.whole, originals.whole_data, words, decided))
        replay = ["--target", "x86", *NO_FLOORS, "--verify-samples", str(FEW), "--plan", str(decided)]
        for model, samples in pairs if runs[0].model is not None else ():
            runs.append(run_with_words(contender.name, model, samples, replay, folder / model.stem))
    written = [run.model for run in runs[-2:] if run.model is not None]
    files = (
        share(dict(zip(("encoder", "decoder"), written, strict=True)), folder / "shared") if len(written) == 2 else ()
    )
    return Compressed(files, tuple(runs))


def _recipe_words(contender: Contender, folder: Path) -> Sequence[str]:
    if not contender.layer_bits:
        return ()
    path = folder / "bits.toml"
    path.write_text(recipe_for(contender.layer_bits), encoding="utf-8")
    return ("--config", str(path))


def recipe_for(bits: Mapping[str, int]) -> str:
    """Return a recipe with the bits of layers.

    Args:
        bits: pattern -> bits.
    """
    return "\n".join(f"[match.'{pattern}']\nbits = {width}\n" for pattern, width in bits.items())
