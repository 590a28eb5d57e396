"""Bits of rows: smoothing, importance, the optimum against all allocations, and geometric clusters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UsageError
from qcompiler.quant.row_bits import (
    best_bits,
    cluster_sizes,
    fewest_bytes,
    geometric_bits,
    row_importance,
    smoothed_counts,
)

BYTES = np.asarray([0, 50, 98])


def falling(seed: int, rows: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.sort(rng.random((rows, 3)), axis=1)[:, ::-1] * rng.random((rows, 1))


@given(st.integers(0, 10**6), st.integers(0, 600))
def test_no_allocation_loses_less_than_the_bound(seed, budget):
    losses = falling(seed)
    found = best_bits(losses, BYTES, 0, budget)
    ways = (np.asarray(w) for w in itertools.product(range(3), repeat=6))
    best = min(losses[np.arange(6), w].sum() for w in ways if BYTES[w].sum() <= budget)
    assert found.row_bytes <= budget
    assert found.bound <= best + 1e-9
    assert best <= found.loss + 1e-12
    assert found.loss - found.bound <= losses.max() + 1e-9  # at most one step is missing


def test_with_steps_of_one_size_and_convex_losses_it_is_the_optimum():
    rng = np.random.default_rng(0)
    losses = rng.random((6, 1)) * np.asarray([[1.0, 0.25, 0.06]])
    even = np.asarray([0, 48, 96])
    found = best_bits(losses, even, 0, 5 * 48)
    ways = (np.asarray(w) for w in itertools.product(range(3), repeat=6))
    assert found.loss == pytest.approx(min(losses[np.arange(6), w].sum() for w in ways if even[w].sum() <= 240))


def test_every_row_keeps_the_fewest_bits():
    assert set(best_bits(falling(1), BYTES + 48, 1, 6 * 60).bits) <= {1, 2, 3}


def test_a_budget_below_the_smallest_size_is_refused():
    with pytest.raises(UsageError, match="288 bytes, more than 287"):
        best_bits(falling(1), BYTES + 48, 1, 287)


def test_fewest_bytes_is_the_smallest_budget_that_holds():
    losses = falling(3)
    found = fewest_bytes(losses, BYTES, 0, 0.5)
    assert found.loss <= 0.5
    assert best_bits(losses, BYTES, 0, found.row_bytes - 1).loss > 0.5


@pytest.mark.parametrize(("ratio", "mean"), [(1, 2.5), (2, 1.73), (4, 1.32), (8, 1.14)])
def test_clusters_have_the_mean_bits_of_the_paper(ratio, mean):
    sizes = cluster_sizes(30000, 4, ratio)
    assert sizes.sum() == 30000
    assert (sizes * [4, 3, 2, 1]).sum() / 30000 == pytest.approx(mean, abs=0.01)


def test_clusters_give_the_important_rows_more_and_never_beat_the_optimum():
    losses = falling(5, 200)
    importance = np.random.default_rng(0).random(200)
    clusters = geometric_bits(importance, losses, BYTES, 0, 9000)
    assert clusters.row_bytes <= 9000
    order = np.argsort(-importance, kind="stable")
    assert (np.diff(clusters.bits[order].astype(int)) <= 0).all()
    assert best_bits(losses, BYTES, 0, 9000).bound <= clusters.loss


def test_rows_that_were_never_read_are_not_starved():
    counts = np.zeros(1000)
    counts[:500] = np.geomspace(10000, 1, 500)
    share = smoothed_counts(counts)
    assert share.sum() == pytest.approx(1)
    assert (share[500:] > 0).all()
    counts[100] = 0  # among frequent rows
    assert smoothed_counts(counts)[100] > 10 * smoothed_counts(counts)[900]


def test_without_counts_all_rows_are_alike():
    share = smoothed_counts(np.zeros(777))
    np.testing.assert_allclose(share, 1 / 777)


def test_measured_power_flattens_the_shares():
    share = smoothed_counts(np.geomspace(1e6, 1, 400))
    readings = np.ones(400)
    plain = row_importance(share, np.zeros(400), np.zeros(400))
    flat = row_importance(share, share**-0.5, readings)
    assert np.ptp(np.log(flat)) < np.ptp(np.log(plain))
    rising = row_importance(share, share**2.0, readings)  # an error is never worth more for being frequent
    np.testing.assert_allclose(rising, plain / plain.max())
