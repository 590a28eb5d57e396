"""What a translation model is worth: BLEU with paired intervals, cross-entropy, bytes, seconds and memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from tokenizers import Tokenizer

from benchmarks.nmt.corpus import read_part
from benchmarks.nmt.decoding import cross_entropies, open_sessions, translate
from benchmarks.readers import Array

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Translation:
    """One part, translated and scored.

    Attributes:
        lines: the translations.
        statistics: int64 (lines, 10) of BLEU: correct and total n-grams, lengths; see ``bleu_statistics``.
        entropies: float64 (lines, 2): summed cross-entropy of the reference in nats, and its tokens.
        load_seconds: wall time to load both sessions.
        cpu_seconds: CPU time to translate all lines.
        peak_bytes: resident set of the process at its largest, imports included.
    """

    lines: tuple[str, ...]
    statistics: Array
    entropies: Array
    load_seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def bleu(self) -> float:
        """Return BLEU from 0 to 100."""
        return corpus_bleu(self.statistics.sum(0))

    @property
    def entropy(self) -> float:
        """Return the cross-entropy of a token of the reference, in nats."""
        return float(self.entropies[:, 0].sum() / self.entropies[:, 1].sum())


def metric() -> BLEU:
    """Return BLEU for text that is tokenised and in lower case already, so that nothing is tokenised again."""
    return BLEU(tokenize="none", force=True)


def signature() -> str:
    """Return sacrebleu's description of how it scores."""
    scorer = metric()
    scorer.corpus_score(["a b c d"], [["a b c d"]])
    return str(scorer.get_signature())


def bleu_statistics(lines: Sequence[str], references: Sequence[str]) -> Array:
    """Return int64 (lines, 10): length, reference length, 4 counts of correct n-grams, 4 of all n-grams."""
    scores = [metric().corpus_score([line], [[wanted]]) for line, wanted in zip(lines, references, strict=True)]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], np.int64)


def corpus_bleu(sums: Array) -> float:
    """Return BLEU of summed statistics.

    Source: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation" (ACL 2002), section
    2.3; a precision of zero is smoothed as sacrebleu's ``exp`` does.
    """
    length, wanted = int(sums[0]), int(sums[1])
    correct, total = [int(n) for n in sums[2:6]], [int(n) for n in sums[6:10]]
    scored = BLEU.compute_bleu(correct, total, length, wanted, smooth_method="exp")
    return float(scored.score)


def paired_interval(found: Array, reference: Array, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the difference in BLEU, by paired bootstrap over sentences.

    Source: Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (EMNLP 2004).

    Args:
        found: statistics of every line.
        reference: of the same lines, taken away.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(found), np.full(len(found), 1 / len(found)), RESAMPLES)
    ours, theirs = weights @ found, weights @ reference
    differences = [corpus_bleu(a) - corpus_bleu(b) for a, b in zip(ours, theirs, strict=True)]
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def total_bytes(files: Sequence[Path]) -> int:
    """Return the bytes of all files together: graphs, scales, and what several models share once."""
    return sum(path.stat().st_size for path in files)


def score(files: tuple[Path, Path], subwords: Path, data: Path, part: str, beam: int) -> Translation:
    """Translate and score a part in this process, on one thread.

    Args:
        files: encoder and decoder.
        subwords: the tokenizer's file.
        data: the folder that has ``text/multi30k``.
        part: ``val`` or ``test2016``.
        beam: hypotheses of the search; 1 is greedy.
    """
    tokenizer = Tokenizer.from_file(str(subwords))
    sentences = read_part(data, part)
    started = time.perf_counter()
    sessions = open_sessions(*files)
    loaded = time.perf_counter() - started
    before = time.process_time()
    lines = translate(sessions, tokenizer, sentences.source, beam)
    seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    entropies = cross_entropies(sessions, tokenizer, sentences.source, sentences.target)
    return Translation(tuple(lines), bleu_statistics(lines, sentences.target), entropies, loaded, seconds, peak)


def save(found: Translation, path: Path) -> None:
    """Keep a scored translation as JSON."""
    document = {**asdict(found), "statistics": found.statistics.tolist(), "entropies": found.entropies.tolist()}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def load(path: Path) -> Translation:
    """Read what ``save`` wrote."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    arrays = {"statistics": np.array(kept["statistics"], np.int64), "entropies": np.array(kept["entropies"])}
    return Translation(**{**kept, "lines": tuple(kept["lines"]), **arrays})


def _main(words: Sequence[str]) -> None:
    encoder, decoder, subwords, data, part, beam, output = words
    found = score((Path(encoder), Path(decoder)), Path(subwords), Path(data), part, int(beam))
    save(found, Path(output))


if __name__ == "__main__":
    _main(sys.argv[1:])
