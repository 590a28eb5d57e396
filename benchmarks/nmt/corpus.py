"""The sentences of Multi30k, their subwords, and batches of sentences of like length.

Multi30k (Elliott et al., 2016) is read as lower-case, normalised, tokenised lines. Training lines train, validation
lines choose, and the test lines of 2016 score and do nothing else.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.readers import Array

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = 8000
_SUFFIX = "</w>"
_FILES = {"train": "train", "val": "val", "test2016": "test_2016_flickr"}


@dataclass(frozen=True, slots=True)
class Sentences:
    """The lines of one part, in both languages.

    Attributes:
        source: English.
        target: German.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]


def read_part(data: Path, part: str) -> Sentences:
    """Return the lines of ``train``, ``val`` or ``test2016``.

    Args:
        data: the folder that has ``text/multi30k``.
        part: which.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    folder = data / "text" / "multi30k"
    sides = []
    for language in ("en", "de"):
        with gzip.open(folder / f"{_FILES[part]}.lc.norm.tok.{language}.gz", "rt", encoding="utf-8") as lines:
            sides.append(tuple(line.strip() for line in lines))
    return Sentences(*sides)


def train_subwords(sentences: Sentences) -> Tokenizer:
    """Return one byte-pair encoding of 8000 entries for both languages.

    Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (ACL 2016).
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN], end_of_word_suffix=_SUFFIX))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix=_SUFFIX)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), end_of_word_suffix=_SUFFIX, show_progress=False
    )
    tokenizer.train_from_iterator([*sentences.source, *sentences.target], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, lines: Sequence[str]) -> list[list[int]]:
    """Return the subwords of every line, with END behind them."""
    return [[*entry.ids, END] for entry in tokenizer.encode_batch(list(lines))]


def padded(rows: Sequence[Sequence[int]]) -> Array:
    """Return int64 (rows, longest), filled up with PAD."""
    found = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids
    return found


def batches_by_tokens(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    tokens: int,
    generator: np.random.Generator,
) -> Iterator[tuple[Array, Array]]:
    """Yield source and target ids of sentences of like length, all sentences once, in random order.

    Args:
        sources: subwords, END behind them.
        targets: the same.
        tokens: the most entries of either side of a batch, padding included.
        generator: of the order.
    """
    longest = np.array([max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)])
    order = np.lexsort((generator.random(len(longest)), longest))
    groups: list[list[int]] = [[]]
    for row in order:
        if groups[-1] and (len(groups[-1]) + 1) * int(longest[row]) > tokens:
            groups.append([])
        groups[-1].append(int(row))
    for number in generator.permutation(len(groups)):
        rows = groups[number]
        yield padded([sources[row] for row in rows]), padded([targets[row] for row in rows])
