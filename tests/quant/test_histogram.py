"""Streaming statistics: what they count, whatever the order and the size of the pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.quant.histogram import MAX_POSITIONS, MAX_VALUES, NUM_BINS, StreamingStatistics
from tests.tolerances import FLOAT64_EPS, bin_width

reals = st.floats(-1e6, 1e6, width=32)
pieces = st.lists(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 5)), elements=reals), min_size=1)


def observed(*samples, channel_axis=None):
    statistics = StreamingStatistics(channel_axis)
    for sample in samples:
        statistics.add(sample)
    return statistics.result()


@given(pieces)
def test_range_and_total_do_not_depend_on_the_pieces(samples):
    parts = observed(*samples)
    whole = observed(np.concatenate([s.reshape(-1) for s in samples]))
    backwards = observed(*reversed(samples))
    for found in (parts, backwards):
        assert (found.low, found.high) == (whole.low, whole.high)
        assert found.counts.sum() == whole.counts.sum()
        assert found.zeros == pytest.approx(whole.zeros)
    assert parts.samples == len(samples)


@given(pieces)
def test_growing_loses_nothing(samples):
    statistics = StreamingStatistics()
    seen = 0
    for sample in samples:
        statistics.add(sample)
        seen += sample.size
        found = statistics.result()
        assert found.counts.sum() == seen
        assert found.counts.shape == (NUM_BINS,)
        slack = FLOAT64_EPS * (found.grid[1] - found.grid[0])
        assert found.grid[0] - slack <= found.low
        assert found.high <= found.grid[1] + slack


def test_counts_stay_where_the_values_are():
    rng = np.random.default_rng(0)
    small, large = rng.normal(0, 1, 500).astype(np.float32), rng.normal(3, 20, 500).astype(np.float32)
    found = observed(small, large)
    edges = np.linspace(*found.grid, NUM_BINS + 1)
    values = np.sort(np.concatenate([small, large]))
    # Where the cumulative count says a value is, it is, to within one bin.
    reached = edges[1:][np.searchsorted(np.cumsum(found.counts), np.arange(1, values.size + 1))]
    assert np.abs(reached - values).max() <= 1.01 * bin_width(edges)


@pytest.mark.parametrize(
    ("shape", "axis", "channels"),
    [
        ((2, 3, 4, 5), None, 1),
        ((2, 3, 4), None, 2),
        ((2, 3, 4), 1, 1),
        ((2, 3), 1, 1),
        ((7,), 1, 0),
        ((1, 2, 3, 2, 2), None, 1),
    ],
)
def test_channel_sums(shape, axis, channels):
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]
    found = observed(*samples, channel_axis=axis)
    rows = np.moveaxis(np.stack(samples), channels + 1, 0).reshape(shape[channels], -1).astype(np.float64)
    np.testing.assert_allclose(found.channel_mean, rows.mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.channel_power, np.square(rows).mean(1), rtol=1e-12)
    np.testing.assert_array_equal(found.channel_peak, np.abs(rows).max(1))


def test_channels_that_vary_have_no_statistics_and_get_none_later():
    samples = [np.ones((1, length), np.float32) for length in (3, 4, 5, 5)]
    found = observed(*samples)
    assert found.channel_mean.size == found.channel_power.size == found.channel_peak.size == 0
    assert found.counts.sum() == 17


def test_a_scalar_and_an_empty_tensor():
    found = observed(np.float32(2.5) * np.ones((), np.float32), np.zeros((0, 3), np.float32))
    assert (found.low, found.high, found.samples) == (2.5, 2.5, 1)
    assert found.channel_mean.tolist() == [2.5]
    assert found.grid[0] < found.grid[1]


def test_zeros_are_counted():
    found = observed(np.array([[0.0, -0.0, 1.0, -2.0]], np.float32))
    assert found.zeros == 0.5


def test_large_tensors_are_thinned_but_keep_their_exact_range():
    values = np.zeros((1, 2, 3 * MAX_VALUES, 1), np.float32)
    values[0, 0, 12345, 0], values[0, 1, 54321, 0] = 7.0, -3.0
    found = observed(values)
    assert (found.low, found.high) == (-3.0, 7.0)
    assert found.channel_peak.tolist() == [7.0, 3.0]
    assert MAX_VALUES // 2 <= found.counts.sum() <= 2 * MAX_VALUES
    assert values.shape[2] > MAX_POSITIONS


def test_a_first_sample_of_nothing_but_zero_does_not_bind_the_grid():
    found = observed(np.zeros((1, 4), np.float32), np.array([[-1e6, 1e6, 1.0, 0.0]], np.float32))
    assert (found.low, found.high) == (-1e6, 1e6)
    assert found.counts.sum() == 8
