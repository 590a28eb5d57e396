"""Calibration methods against brute force, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.quant.histogram import NUM_BINS, StreamingStatistics, TensorStatistics
from qcompiler.quant.ranges import (
    CANDIDATES,
    PERCENTILE,
    RANGE_METHODS,
    entropy_range,
    minmax_range,
    mse_range,
    percentile_range,
    silu,
)
from tests.tolerances import bin_width

seeds = st.integers(0, 2**16)


def drawn(seed: int, kind: str = "heavy", count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "heavy":
        return rng.standard_t(3, count).astype(np.float32)
    if kind == "rectified":
        return np.maximum(rng.standard_normal(count), 0).astype(np.float32)
    return rng.uniform(-1, 3, count).astype(np.float32)


def observed(values: np.ndarray) -> TensorStatistics:
    statistics = StreamingStatistics()
    statistics.add(values.reshape(1, -1))
    return statistics.result()


def expected_error(statistics, bounds, levels, transfer=lambda x: x):
    """The objective that mse_range states, written again: clipping of the histogram + rounding noise inside."""
    edges = np.linspace(*statistics.grid, len(statistics.counts) + 1)
    centers = np.clip((edges[:-1] + edges[1:]) / 2, statistics.low, statistics.high)
    weight = statistics.counts / statistics.counts.sum()
    clipped = np.sum(weight * (transfer(np.clip(centers, *bounds)) - transfer(centers)) ** 2)
    reach = np.ptp(centers) * 1e-4
    slope = (transfer(centers + reach) - transfer(centers - reach)) / (2 * reach)
    noise = (1 - statistics.zeros) * np.sum(slope**2 * weight)
    return clipped + noise * ((bounds[1] - bounds[0]) / (levels - 1)) ** 2 / 12


KINDS = ["heavy", "rectified", "uniform"]


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
@pytest.mark.parametrize("kind", KINDS)
def test_no_method_reaches_beyond_what_was_observed(method, kind):
    statistics = observed(drawn(0, kind))
    low, high = RANGE_METHODS[method](statistics, 256, None)
    assert min(statistics.low, 0.0) <= low <= high <= max(statistics.high, 0.0)


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
@pytest.mark.parametrize("constant", [0.0, 2.5, -2.5])
def test_constant_activations_have_a_range(method, constant):
    low, high = RANGE_METHODS[method](observed(np.full(10, constant, np.float32)), 256, None)
    assert min(low, 0.0) == min(constant, 0.0)
    assert max(high, 0.0) == max(constant, 0.0)


def test_minmax_is_what_was_observed():
    statistics = observed(drawn(0))
    assert minmax_range(statistics, 256) == (statistics.low, statistics.high)


@given(seeds, st.sampled_from(KINDS))
def test_percentile_is_the_quantile_of_the_values(seed, kind):
    values = drawn(seed, kind)
    statistics = observed(values)
    tail = (1 - PERCENTILE / 100) / 2
    ordered = np.sort(values)
    # The bin that the quantile lies in ends at most one bin width away from it.
    low = ordered[int(np.floor(tail * values.size))]
    high = ordered[int(np.ceil((1 - tail) * values.size)) - 1]
    edges = np.linspace(*statistics.grid, NUM_BINS + 1)
    found = percentile_range(statistics, 256)
    assert abs(found[0] - low) <= 1.01 * bin_width(edges)
    assert abs(found[1] - high) <= 1.01 * bin_width(edges)


def test_percentile_cuts_off_a_lone_outlier():
    values = np.concatenate([np.linspace(-1, 1, 200_000), [500.0]]).astype(np.float32)
    statistics = StreamingStatistics()
    for part in np.array_split(values, 8):
        statistics.add(part.reshape(1, -1))
    low, high = percentile_range(statistics.result(), 256)
    assert -1.5 < low < -0.9
    assert 0.9 < high < 1.5


@given(seeds, st.sampled_from(KINDS), st.sampled_from([16, 256]))
def test_mse_is_never_worse_than_minmax_by_its_own_measure(seed, kind, levels):
    statistics = observed(drawn(seed, kind))
    whole = (min(statistics.low, 0.0), max(statistics.high, 0.0))
    found = mse_range(statistics, levels)
    assert expected_error(statistics, found, levels) <= expected_error(statistics, whole, levels)


def test_mse_finds_the_least_error_of_all_one_sided_ranges():
    statistics = observed(drawn(3, "rectified"))
    found = mse_range(statistics, 16)
    tried = [(0.0, statistics.high * s) for s in np.linspace(1.0, 0.2, CANDIDATES)]
    least = min(expected_error(statistics, bounds, 16) for bounds in tried)
    assert expected_error(statistics, found, 16) == pytest.approx(least, rel=1e-12)
    assert found[1] < statistics.high, "with 16 codes cutting off the tail pays"


def test_mse_looks_through_a_transfer_function():
    values = np.random.default_rng(0).normal(-2, 4, 4000).astype(np.float32)
    statistics = observed(values)
    found = mse_range(statistics, 256, silu)
    whole = (statistics.low, statistics.high)
    assert expected_error(statistics, found, 256, silu) < expected_error(statistics, whole, 256, silu)
    assert found[0] > 0.8 * statistics.low, "what SiLU flattens costs nothing to cut off"


def test_silu():
    x = np.array([-100.0, -1.0, 0.0, 1.0, 100.0])
    np.testing.assert_allclose(silu(x), x / (1 + np.exp(-x)), rtol=1e-12, atol=1e-24)


def reference_divergence(weight, first, last, levels):
    """KL divergence of a histogram from its quantized form, one bin after the other."""
    p = list(weight[first:last])
    p[0] += sum(weight[:first])
    p[-1] += sum(weight[last:])
    groups = {}
    for position in range(last - first):
        groups.setdefault(position * levels // (last - first), []).append(position)
    q = [0.0] * (last - first)
    for members in groups.values():
        live = [m for m in members if weight[first + m] > 0]
        for m in live:
            q[m] = sum(weight[first + k] for k in members) / len(live)
    mass = sum(q)
    if mass == 0:
        return float("inf")
    q = [value / mass for value in q]
    lost = sum(a for a, b in zip(p, q, strict=True) if a > 0 and b == 0)
    total = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0 and b > 0)
    smallest = min(b for a, b in zip(p, q, strict=True) if a > 0 and b > 0)
    return total + (lost * np.log(lost / smallest) if lost > 0 else 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_the_least_divergence_of_all_candidates(kind):
    statistics = observed(drawn(5, kind, 2000))
    levels = 128
    edges = np.linspace(*statistics.grid, NUM_BINS + 1)
    weight = statistics.counts / statistics.counts.sum()
    weight[min(int(np.searchsorted(edges, 0.0, side="right")) - 1, NUM_BINS - 1)] -= statistics.zeros  # have a code
    weight /= weight.sum()
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    scores = {}
    for shrink in np.linspace(1.0, 0.2, CANDIDATES):
        first = max(int(np.searchsorted(edges, low * shrink, side="right")) - 1, 0)
        last = min(max(int(np.searchsorted(edges, high * shrink, side="left")), first + 1), NUM_BINS)
        if last - first >= levels:
            scores[low * shrink, high * shrink] = reference_divergence(weight, first, last, levels)
    found = entropy_range(statistics, levels)
    assert scores[found] == pytest.approx(min(scores.values()), rel=1e-9)


def test_entropy_keeps_everything_where_there_are_fewer_bins_than_codes():
    statistics = observed(drawn(0))
    assert entropy_range(statistics, NUM_BINS + 1) == (statistics.low, statistics.high)
