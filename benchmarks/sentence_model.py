"""all-MiniLM-L6-v2 on STS14: its tokens, its sentence vectors, and what a compressed file loses of them.

Calibration is on captions of Multi30k (train, English). STS14 only scores: nothing is chosen on it. A loss is positive
where the compressed model is worse, in points of Spearman's correlation.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.readers import tokenize
from benchmarks.scoring import latency_ratios, open_session

Array = npt.NDArray[np.generic]
Feeds = dict[str, Array]
Tokens = Sequence[Sequence[int]]

MINILM = "models/all_minilm_l6_v2.onnx"
CAPTIONS = "text/multi30k/train.lc.norm.tok.en.gz"
COLUMNS = 384
VOCABULARY = 30522
RESAMPLES = 400
LATENCY_TOKENS = 32
_ORDINARY = 2000
"""An identifier of some word, [CLS] and [SEP] around which make a sentence to time."""


@dataclass(frozen=True)
class Scored:
    """What one file says of the pairs.

    Attributes:
        vectors: unit vectors of all first and then all second sentences.
        similarity: cosine of every pair.
    """

    vectors: npt.NDArray[np.float64]
    similarity: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """STS14, and what the float model makes of it.

    Attributes:
        tokens: of all first and then all second sentences.
        gold: similarity of every pair, as people see it.
        sets: name of the set of every pair.
        original: the float model's answers.
    """

    tokens: Tokens
    gold: npt.NDArray[np.float64]
    sets: npt.NDArray[np.str_]
    original: Scored

    def correlations(self, found: Scored, pairs: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float64]:
        """Return Spearman's correlation times 100: of all pairs together, and the mean of the sets."""
        from scipy.stats import spearmanr

        pairs = np.arange(len(self.gold)) if pairs is None else pairs
        similarity, gold, sets = found.similarity[pairs], self.gold[pairs], self.sets[pairs]
        parts = [spearmanr(similarity[sets == s], gold[sets == s]).statistic for s in np.unique(sets)]
        return 100 * np.array([spearmanr(similarity, gold).statistic, np.mean(parts)])

    def losses(self, results: Sequence[Scored]) -> npt.NDArray[np.float64]:
        """Return both losses in points, the mean of several results."""
        return np.asarray(self.correlations(self.original) - np.mean([self.correlations(r) for r in results], axis=0))

    def intervals(self, results: Sequence[Scored]) -> npt.NDArray[np.float64]:
        """Return the 95 % intervals of both losses, (2, low and high): pairs are drawn anew within their sets."""
        rng = np.random.default_rng(0)
        places = [np.flatnonzero(self.sets == s) for s in np.unique(self.sets)]
        drawn = [np.concatenate([rng.choice(p, len(p)) for p in places]) for _ in range(RESAMPLES)]
        losses = [
            self.correlations(self.original, pairs) - np.mean([self.correlations(r, pairs) for r in results], axis=0)
            for pairs in drawn
        ]
        return np.asarray(np.percentile(losses, [2.5, 97.5], axis=0).T)

    def cosine(self, found: Scored) -> float:
        """Return the mean cosine of sentence vectors to the float model's."""
        return float(np.sum(found.vectors * self.original.vectors, axis=1).mean())

    def cells(self, results: Sequence[Scored]) -> list[str]:
        """Return both losses with their intervals, and the smallest cosine of the results, as cells of a table."""
        bounds = zip(self.losses(results), self.intervals(results), strict=True)
        return [f"{x:.2f} ({a:.2f} to {b:.2f})" for x, (a, b) in bounds] + [f"{min(map(self.cosine, results)):.4f}"]


def read_truth(data: Path) -> Truth:
    """Return STS14 with the answers of the float model."""
    lines = [line.split("\t") for line in (data / "text/sts14_pairs.tsv").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if len(line) == 4 and line[1].replace(".", "", 1).isdigit()]
    sets, gold, first, second = zip(*lines, strict=True)
    tokens = tokenize(data / "text/minilm_tokenizer.json", [*first, *second])
    return Truth(tokens, np.asarray(gold, np.float64), np.asarray(sets), scored(data / MINILM, tokens))


def captions(data: Path) -> Tokens:
    """Return the tokens of all calibration captions."""
    with gzip.open(data / CAPTIONS, "rt", encoding="utf-8") as file:
        return tokenize(data / "text/minilm_tokenizer.json", file.read().splitlines())


def token_counts(tokens: Tokens) -> npt.NDArray[np.int64]:
    """Return how often every entry of the vocabulary occurs."""
    return np.bincount(np.concatenate([np.asarray(sentence) for sentence in tokens]), minlength=VOCABULARY)


def sentence_feeds(tokens: Tokens) -> Feeds:
    """Return the inputs of the sentence model for sentences of equal length."""
    ids = np.asarray(tokens, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def by_length(tokens: Tokens) -> list[list[int]]:
    """Return the places of sentences in groups of equal length, so that nothing has to be padded."""
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
    return [list(group) for _, group in groupby(order, key=lambda place: len(tokens[place]))]


def scored(path: Path, tokens: Tokens) -> Scored:
    """Return the vectors of sentences, and the cosine of every first with its second."""
    session = open_session(path)
    vectors = np.empty((len(tokens), COLUMNS))
    for group in by_length(tokens):
        for start in range(0, len(group), 32):
            chosen = group[start : start + 32]
            (states,) = session.run(None, sentence_feeds([tokens[place] for place in chosen]))
            vectors[chosen] = np.asarray(states, np.float64).mean(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    half = len(tokens) // 2
    return Scored(vectors, np.sum(vectors[:half] * vectors[half:], axis=1))


def sentence_latency(data: Path, paths: Sequence[Path]) -> list[str]:
    """Return the time of a sentence of 32 tokens over that of the float model, interleaved, one cell a file."""
    sessions = [open_session(path) for path in (data / MINILM, *paths)]
    sentence = [101, *[_ORDINARY] * (LATENCY_TOKENS - 2), 102]
    return [f"{ratio.minimum:.3f}" for ratio in latency_ratios(sessions, sentence_feeds([sentence]))[1:]]
