"""Which samples calibrate, which accept a search result and which verify: three disjoint sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.errors import DataError

MIN_SAMPLES = 3
MAX_ACCEPTANCE = 32


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint, sorted sample indices."""

    calibration: tuple[int, ...]
    acceptance: tuple[int, ...]
    verification: tuple[int, ...]


def split(
    n: int, calibration_samples: int, verify_samples: int, seed: int, most_accepting: int = MAX_ACCEPTANCE
) -> Split:
    """Split ``n`` samples; the same arguments always give the same split.

    Verification is served first. With fewer samples than asked for, it gets what calibration leaves, but at
    least two fifths. Acceptance takes a quarter of the calibration budget, within limits.
    Each set is spread evenly over the order of the data, so that data sorted by class stays balanced.

    Args:
        n: number of samples there are.
        calibration_samples: upper limit of calibration and acceptance together (2 is the least used).
        verify_samples: upper limit of verification.
        seed: decides which samples are drawn.
        most_accepting: upper limit of acceptance; at least 1.

    Raises:
        DataError: fewer than three samples.
    """
    if n < MIN_SAMPLES:
        raise DataError(
            f"the data holds {n} sample{'' if n == 1 else 's'}; at least {MIN_SAMPLES} are needed, one each "
            f"to calibrate, to accept a search and to verify (a few hundred are better)"
        )
    budget = max(2, calibration_samples)
    verify = max(1, min(verify_samples, max(n - budget, n * 2 // 5)))
    budget = min(budget, n - verify)
    accept = max(1, min(most_accepting, budget // 4))
    generator = np.random.default_rng(seed)
    verification = _spread(range(n), verify, generator)
    chosen = _spread(sorted(set(range(n)) - set(verification)), budget, generator)
    acceptance = _spread(chosen, accept, generator)
    calibration = sorted(set(chosen) - set(acceptance))
    return Split(tuple(calibration), tuple(acceptance), tuple(verification))


def _spread(candidates: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
    """Return ``count`` candidates in order, one drawn from each of ``count`` equally long stretches."""
    edges = np.linspace(0, len(candidates), count + 1).round().astype(int)
    return [candidates[int(generator.integers(a, b))] for a, b in itertools.pairwise(edges)]
