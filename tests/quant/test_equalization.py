"""Channel factors against a search over all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.quant.equalization import LEVELS, MARGIN, balanced_factors


def noise(factor, peak, power, energy, weight_noise):
    step = peak.max() / LEVELS
    return energy * (step * factor) ** 2 / 12 + weight_noise * power / factor**2 / 12


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_factors_minimize_the_sum_of_both_noises(seed, channels):
    rng = np.random.default_rng(seed)
    peak = rng.uniform(0.01, 4, channels)
    power, energy, weight_noise = peak**2 / 9, rng.uniform(0.1, 4, channels), rng.uniform(1e-6, 1e-2, channels)
    found = balanced_factors(peak, power, energy, weight_noise)
    lowest = np.maximum(np.minimum(MARGIN * peak / peak.max(), 1.0), 2.0**-8)
    assert np.all((found >= lowest - 1e-12) & (found <= 1.0))
    reached = noise(found, peak, power, energy, weight_noise)
    for tried in np.linspace(lowest, 1.0, 200):
        assert np.all(reached <= noise(tried, peak, power, energy, weight_noise) * (1 + 1e-9))


def test_idle_channels_are_left_alone():
    ones = np.ones(3)
    assert np.array_equal(balanced_factors(np.zeros(3), ones, ones, ones), ones)
    found = balanced_factors(np.array([1.0, 0.0, 0.1]), ones, np.array([1.0, 1.0, 0.0]), 1e-6 * ones)
    assert found[1] == found[2] == 1.0


def test_no_channel_grows_beyond_the_largest():
    peak = np.array([1.0, 0.1, 0.001])
    found = balanced_factors(peak, peak**2, np.ones(3), np.zeros(3))
    assert np.all(peak / found <= 1.0)


def test_no_channels():
    assert balanced_factors(*[np.zeros(0)] * 4).size == 0
