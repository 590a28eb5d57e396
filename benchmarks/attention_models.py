"""The models whose attention is measured: what they read, what they answer, and the pairs that score one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import readers
from benchmarks.nmt.corpus import PAD
from benchmarks.readers import Arrays

Vectors = NDArray[np.float64]

MINILM = "models/all_minilm_l6_v2.onnx"
CAPTIONS = "text/multi30k/train.lc.norm.tok.en.gz"
TOKENIZER = "text/minilm_tokenizer.json"
SOLVED, HELD = 96, 48
"""Lines that solvers see, and others, on which errors are measured."""

WHOLE = "whole.onnx"


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


def translator(folder: Path) -> Subject:
    """Return encoder and decoder of a translation model as one graph, with training lines, as benchmarks.nmt left them.

    Args:
        folder: with whole.onnx, which reads ``source`` and ``tokens``, and whole.npz.
    """
    model = folder / WHOLE
    with np.load(model.with_suffix(".npz")) as archive:
        arrays = dict(archive)
    rows = np.linspace(0, len(arrays["source"]) - 1, SOLVED + HELD).astype(int)
    samples = unpadded({name: array[rows] for name, array in arrays.items()})
    held = slice(None, None, (SOLVED + HELD) // HELD)
    chosen = samples[held]
    del samples[held]
    return Subject("translation", model, "probabilities", Lines(samples), Lines(chosen))


def unpadded(arrays: Arrays) -> list[Arrays]:
    """Return the rows of padded numbers of tokens one by one, each without its padding."""
    count = len(next(iter(arrays.values())))
    rows = [{name: array[row : row + 1] for name, array in arrays.items()} for row in range(count)]
    return [{name: row[:, : np.count_nonzero(row != PAD)] for name, row in sample.items()} for sample in rows]


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
