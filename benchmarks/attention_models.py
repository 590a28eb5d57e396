"""The models whose attention is measured: what they read, what they answer, and the pairs that score one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import readers
from benchmarks.nmt.corpus import PAD
from benchmarks.nmt.export import DECODER, ENCODER
from benchmarks.readers import Arrays

Vectors = NDArray[np.float64]

MINILM = "models/all_minilm_l6_v2.onnx"
CAPTIONS = "text/multi30k/train.lc.norm.tok.en.gz"
TOKENIZER = "text/minilm_tokenizer.json"
SOLVED, HELD = 96, 48
"""Captions that solvers see, and those behind them, on which errors are measured."""

HELD_SHARE = 3
"""Of the samples of other models, the last third is what errors are measured on."""

LENGTHS = {"source": ("source", "memory"), "tokens": ("tokens",)}
"""Of the translation model: token numbers, and what is as long as they are."""


@dataclass(frozen=True)
class Lines:
    """Samples of their own length, without padding, as the passes read them."""

    samples: Sequence[Arrays]
    source: str = "lines"
    fingerprint: str = ""
    preprocessing: str = ""
    notes: tuple[str, ...] = ()
    rows_per_sample: int = 1
    row_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Arrays:
        return self.samples[index]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with the samples that solvers see, and those on which errors are measured.

    Attributes:
        name: in headings.
        model: the float file.
        output: whose cosine is measured.
        solved, held: samples.
        pooled: the mean over the tokens is one vector; else every token has one.
    """

    name: str
    model: Path
    output: str
    solved: Lines
    held: Lines
    pooled: bool = False

    def vectors(self, output: Vectors) -> Vectors:
        """Return the vectors of one sample's output (1, tokens, width): shape (vectors, width)."""
        rows = output.reshape(-1, output.shape[-1])
        return rows.mean(0, keepdims=True) if self.pooled else rows


def minilm(data: Path) -> Subject:
    """Return the sentence model with captions of Multi30k's training part."""
    samples = sentences(data, readers.gzip_lines(data / CAPTIONS, SOLVED + HELD)).samples
    solved, held = Lines(samples[:SOLVED]), Lines(samples[SOLVED:])
    return Subject("MiniLM", data / MINILM, "last_hidden_state", solved, held, pooled=True)


def sentences(data: Path, texts: Sequence[str]) -> Lines:
    """Return sentences as the sentence model reads them."""
    found = []
    for tokens in readers.tokenize(data / TOKENIZER, texts):
        identifiers = np.asarray([tokens], np.int64)
        found.append(
            {
                "input_ids": identifiers,
                "attention_mask": np.ones_like(identifiers),
                "token_type_ids": np.zeros_like(identifiers),
            }
        )
    return Lines(found)


def translator(folder: Path) -> list[Subject]:
    """Return encoder and decoder of a translation model, with their calibration samples, as benchmarks.nmt left them.

    Args:
        folder: with encoder.onnx, encoder.npz, decoder.onnx and decoder.npz.
    """
    found = []
    for file, output in ((ENCODER, "memory"), (DECODER, "logits")):
        model = folder / file
        with np.load(model.with_suffix(".npz")) as archive:
            samples = unpadded(dict(archive))
        count = len(samples) - len(samples) // HELD_SHARE
        found.append(Subject(model.stem, model, output, Lines(samples[:count]), Lines(samples[count:])))
    return found


def unpadded(arrays: Arrays) -> list[Arrays]:
    """Return the rows of padded arrays one by one, each without its padding."""
    found = []
    for row in range(len(next(iter(arrays.values())))):
        sample = {name: array[row : row + 1] for name, array in arrays.items()}
        for words in LENGTHS.keys() & sample.keys():
            length = np.count_nonzero(sample[words] != PAD)
            for name in LENGTHS[words]:
                if name in sample:
                    sample[name] = sample[name][:, :length]
        found.append(sample)
    return found


@dataclass(frozen=True, eq=False)
class Pairs:
    """The sentence pairs of STS14 with the set that each belongs to."""

    first: Lines
    second: Lines
    gold: Vectors
    sets: NDArray[np.str_]

    @classmethod
    def read(cls, data: Path) -> Pairs:
        """Read them."""
        path = data / "text/sts14_pairs.tsv"
        first, second, gold = readers.sentence_pairs(path)
        sets = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]
        texts = sentences(data, first), sentences(data, second)
        return cls(*texts, np.asarray(gold, np.float64), np.asarray(sets))

    def cells(self, vectors: Callable[[Lines], Vectors]) -> list[str]:
        """Return 100 times the mean over the sets, and the pooled, Spearman correlation with the gold."""
        from scipy.stats import spearmanr  # here, because nothing else needs it

        one, other = vectors(self.first), vectors(self.second)
        close = (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
        each = [spearmanr(close[self.sets == s], self.gold[self.sets == s])[0] for s in sorted(set(self.sets))]
        return [f"{100 * float(v):.2f}" for v in (np.mean(each), spearmanr(close, self.gold)[0])]
