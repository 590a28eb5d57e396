"""Translation with two ONNX files in ONNX Runtime: greedy and by beam search, a batch of sentences at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from benchmarks.nmt.corpus import BEGIN, END, PAD, encode, padded
from benchmarks.readers import Array, Arrays

MOST_BEHIND = 20
"""A translation has at most so many subwords more than its source."""
LENGTH_POWER = 0.6
"""Exponent of the length that a hypothesis's log-probability is divided by."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """The two files, loaded."""

    encoder: ort.InferenceSession
    decoder: ort.InferenceSession

    @property
    def caches(self) -> list[str]:
        """Return the names of the caches."""
        return [i.name.removeprefix("past_") for i in self.decoder.get_inputs() if i.name.startswith("past_")]


def open_sessions(encoder: Path, decoder: Path, threads: int = 1) -> Sessions:
    """Load the two files."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return Sessions(*(ort.InferenceSession(p, options, providers=["CPUExecutionProvider"]) for p in (encoder, decoder)))


def first_feeds(sessions: Sessions, source: Array) -> Arrays:
    """Return what the decoder reads for the first token, but for the tokens: the memory, and empty caches."""
    memory = sessions.encoder.run(["memory"], {"source": source})[0]
    feeds = {"source": source, "memory": memory}
    shapes = {i.name: i.shape for i in sessions.decoder.get_inputs()}
    for name in sessions.caches:
        _, heads, _, width = shapes[f"past_{name}"]
        feeds[f"past_{name}"] = np.zeros((len(source), heads, 0, width), np.float32)
    return feeds


class Stepper:
    """A batch of sentences that are translated token by token."""

    def __init__(self, sessions: Sessions, source: Array) -> None:
        self._sessions, self._feeds = sessions, first_feeds(sessions, source)
        self._names = sessions.caches

    def step(self, tokens: Array) -> Array:
        """Read one token of every sentence, int64 (batch,), and return the next one's logits (batch, vocabulary)."""
        names = ["logits", *(f"present_{name}" for name in self._names)]
        logits, *caches = self._sessions.decoder.run(names, {**self._feeds, "tokens": tokens[:, None]})
        self._feeds |= {f"past_{name}": cache for name, cache in zip(self._names, caches, strict=True)}
        self._feeds["memory"] = self._feeds["memory"][:, :0]
        return np.asarray(logits[:, -1])

    def keep(self, rows: Array) -> None:
        """Go on with some sentences, in this order, some of them several times."""
        self._feeds = {name: np.ascontiguousarray(values[rows]) for name, values in self._feeds.items()}


def greedy(sessions: Sessions, source: Array) -> list[list[int]]:
    """Return the most probable token after token, without END.

    Args:
        sessions: the model.
        source: int64 (batch, source).
    """
    stepper, limit = Stepper(sessions, source), source.shape[1] + MOST_BEHIND
    live, tokens = np.arange(len(source)), np.full(len(source), BEGIN)
    found: list[list[int]] = [[] for _ in source]
    for _ in range(limit):
        tokens = stepper.step(tokens).argmax(1)
        going = tokens != END
        for row, token in zip(live[going], tokens[going], strict=True):
            found[row].append(int(token))
        live, tokens = live[going], tokens[going]
        if not len(live):
            break
        if not going.all():
            stepper.keep(np.flatnonzero(going))
    return found


def beam(sessions: Sessions, source: Array, width: int) -> list[list[int]]:
    """Return the best of ``width`` hypotheses that are kept at every step, without END.

    The log-probability of a finished hypothesis is divided by its length to the power of 0.6. A sentence is over
    when ``width`` hypotheses are finished or the limit is reached.

    Source: Wu et al., "Google's Neural Machine Translation System" (2016), equation 14, without its constant.
    """
    stepper, count = Stepper(sessions, source), len(source)
    limit = source.shape[1] + MOST_BEHIND
    logs = _log_softmax(stepper.step(np.full(count, BEGIN)))
    searches = [_Search(width) for _ in range(count)]
    rows: list[int] = []
    for row, search in enumerate(searches):
        rows += [row] * len(search.extend(logs[row][None]))
    stepper.keep(np.array(rows, np.int64))
    for _ in range(limit - 1):
        live = [search for search in searches if search.live]
        if not live:
            break
        logs = _log_softmax(stepper.step(np.array([tokens[-1] for s in live for tokens, _ in s.live])))
        chosen, start = [], 0
        for search in live:
            size = len(search.live)
            chosen += [start + parent for parent in search.extend(logs[start : start + size])]
            start += size
        if chosen:
            stepper.keep(np.array(chosen, np.int64))
    return [search.best() for search in searches]


class _Search:
    """The hypotheses of one sentence."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.live: list[tuple[list[int], float]] = [([], 0.0)]
        self._finished: list[tuple[list[int], float]] = []

    def extend(self, logs: Array) -> list[int]:
        """Extend the live hypotheses by one token and return which of the old ones each new one extends."""
        scores = np.array([score for _, score in self.live])[:, None] + logs
        order = np.argpartition(-scores, 2 * self._width, axis=None)[: 2 * self._width]
        order = order[np.argsort(-scores.ravel()[order], kind="stable")]
        live: list[tuple[list[int], float]] = []
        parents: list[int] = []
        for place in order:
            parent, token = divmod(int(place), logs.shape[1])
            tokens, score = self.live[parent][0], float(scores[parent, token])
            if token == END:
                self._finished.append((tokens, score / (len(tokens) + 1) ** LENGTH_POWER))
            elif len(live) < self._width:
                live.append(([*tokens, token], score))
                parents.append(parent)
            if len(live) == self._width or len(self._finished) >= self._width:
                break
        over = len(self._finished) >= self._width
        self.live = [] if over else live
        return [] if over else parents

    def best(self) -> list[int]:
        """Return the best finished hypothesis, or the best live one where none is finished."""
        return max(self._finished or self.live, key=lambda entry: entry[1])[0]


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def translate(
    sessions: Sessions, tokenizer: Tokenizer, lines: Sequence[str], width: int = 1, rows: int = 50
) -> list[str]:
    """Return the translation of every line.

    Args:
        sessions: the model.
        tokenizer: its subwords.
        lines: in English, tokenised.
        width: hypotheses of the beam; 1 is greedy.
        rows: lines of a batch, which are of like length.
    """
    sources = encode(tokenizer, lines)
    order = sorted(range(len(lines)), key=lambda row: len(sources[row]))
    found = [""] * len(lines)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        source = padded([sources[row] for row in chosen])
        ids = greedy(sessions, source) if width == 1 else beam(sessions, source, width)
        for row, tokens in zip(chosen, ids, strict=True):
            found[row] = tokenizer.decode(tokens)
    return found


def cross_entropies(
    sessions: Sessions, tokenizer: Tokenizer, source: Sequence[str], target: Sequence[str], rows: int = 32
) -> Array:
    """Return float64 (sentences, 2): the summed cross-entropy of the tokens of each target in nats, and their number.

    The reference is given token by token; END counts.
    """
    sources, targets = encode(tokenizer, source), encode(tokenizer, target)
    order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    found = np.zeros((len(sources), 2))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        wanted = padded([targets[row] for row in chosen])
        feeds = first_feeds(sessions, padded([sources[row] for row in chosen]))
        feeds["tokens"] = shifted(wanted)
        logits = sessions.decoder.run(["logits"], feeds)[0]
        logs = _log_softmax(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)
        picked = np.take_along_axis(logs, wanted[:, :, None], 2)[:, :, 0].astype(np.float64)
        there = wanted != PAD
        found[chosen] = np.stack([-(picked * there).sum(1), there.sum(1)], 1)
    return found


def shifted(target: Array) -> Array:
    """Return what the decoder reads when it is to say ``target``: BEGIN, and all but the last token."""
    return np.concatenate([np.full((len(target), 1), BEGIN), target[:, :-1]], axis=1)
