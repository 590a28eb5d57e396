"""What a classifier answers on scoring rows against its float original: losses, cross-entropy, paired intervals.

Accuracies of two files on the same few hundred rows are not independent: which answers were lost and which were
gained says more than the two accuracies, and so intervals are of the difference, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.readers import Array, Arrays
from benchmarks.scoring import feeds, open_session, sqnr_db

LEAST_PROBABILITY = 1e-7
"""Probabilities below count as this much, so that one row cannot decide a mean cross-entropy."""

_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Answers:
    """What one file says about every scoring row.

    Attributes:
        chosen: int64, the class with the largest output.
        right: bool, whether that is the label.
        cross_entropy: float64, of the label, in nats.
    """

    chosen: Array
    right: Array
    cross_entropy: Array


def run_rows(model: Path, samples: Arrays) -> Arrays:
    """Return the outputs of a model on all rows, one by one, joined along the first axis."""
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, feed) for feed in feeds(samples)]
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}


def output_levels(reference: Arrays, found: Arrays) -> dict[str, float]:
    """Return the signal-to-noise ratio of every output in dB, over all rows."""
    levels = {}
    for name, expected in reference.items():
        wide = expected.astype(np.float64)
        noise = float(np.square(wide - found[name].astype(np.float64)).sum())
        levels[name] = sqnr_db(float(np.square(wide).sum()), noise)
    return levels


def answers(outputs: Array, labels: Array) -> Answers:
    """Return the answers that class scores give.

    Args:
        outputs: (rows, classes): probabilities if no row has a negative one and all sum to 1, else logits.
        labels: int64 (rows,).
    """
    wide = outputs.astype(np.float64)
    rows = np.arange(len(labels))
    if is_distribution(wide):
        entropy = -np.log(np.maximum(wide[rows, labels], LEAST_PROBABILITY))
    else:
        shifted = wide - wide.max(axis=1, keepdims=True)
        entropy = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
        entropy = np.minimum(entropy, -np.log(LEAST_PROBABILITY))
    chosen = wide.argmax(axis=1)
    return Answers(chosen, chosen == labels, entropy)


def is_distribution(outputs: Array) -> bool:
    """Return whether every row holds probabilities, as far as 8-bit arithmetic keeps their sum."""
    return bool((outputs >= 0).all() and np.abs(outputs.sum(axis=1) - 1).max() < 0.05)


@dataclass(frozen=True, slots=True)
class Change:
    """Of one compiled file on the scoring rows, against the original.

    Attributes:
        lost: bool (rows,), right in the original and wrong here.
        gained: bool (rows,), the other way around.
        agrees: bool (rows,), the original's answer.
        entropy_rise: float64 (rows,), in nats.
    """

    lost: Array
    gained: Array
    agrees: Array
    entropy_rise: Array

    @property
    def points(self) -> float:
        """Return the loss of top-1 in points."""
        return float(100 * (self.lost.mean() - self.gained.mean()))


def change(original: Answers, found: Answers) -> Change:
    """Return what became of every row."""
    return Change(
        lost=original.right & ~found.right,
        gained=found.right & ~original.right,
        agrees=found.chosen == original.chosen,
        entropy_rise=found.cross_entropy - original.cross_entropy,
    )


def bootstrap_interval(differences: Array, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a mean by paired bootstrap: rows are drawn with replacement, percentiles taken.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.

    Args:
        differences: one figure per row, of both files on that row; of several seeds, their mean.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    values = np.asarray(differences, np.float64)
    means = []
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        drawn = generator.integers(0, len(values), (_RESAMPLES_AT_ONCE, len(values)))
        means.append(values[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def losses_by_row(changes: Sequence[Change]) -> Array:
    """Return the loss of top-1 in points that every row contributes, the mean of several seeds."""
    rows = [100.0 * (c.lost.astype(np.float64) - c.gained.astype(np.float64)) for c in changes]
    return np.asarray(np.mean(rows, axis=0))
