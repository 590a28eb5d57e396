"""Moments of activations against samples of them."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.quant.gaussian import (
    AVERAGED_VALUES,
    SIGMAS,
    average_moments,
    clip_moments,
    linear_moments,
    mixture_statistics,
    normal_cdf,
    normal_pdf,
    sum_moments,
)
from tests.tolerances import mean_of_samples, std_of_samples

COUNT = 200_000


def normal(seed, mean, std, count=COUNT):
    rng = np.random.default_rng(seed)
    return rng.normal(mean, std, (count, np.size(mean)))


def assert_moments(found, samples):
    mean, std = samples.mean(0), samples.std(0)
    fourth = ((samples - mean) ** 4).mean(0) ** 0.25
    for channel in range(samples.shape[1]):
        assert abs(found[0][channel] - mean[channel]) <= mean_of_samples(max(std[channel], 1e-9), COUNT)
        room = std_of_samples(fourth[channel], max(std[channel], 1e-9), COUNT)
        assert abs(found[1][channel] - std[channel]) <= room + 1e-9


MEAN, STD = np.array([-1.0, 0.0, 0.5, 3.0]), np.array([0.5, 1.0, 2.0, 0.1])


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (-np.inf, 0.5), (-np.inf, np.inf)])
def test_clipped_gaussians(low, high):
    assert_moments(clip_moments(MEAN, STD, low, high), np.clip(normal(0, MEAN, STD), low, high))


def test_a_wrong_limit_is_noticed():
    with pytest.raises(AssertionError):
        assert_moments(clip_moments(MEAN, STD, 0.0, 5.0), np.clip(normal(0, MEAN, STD), 0.1, 5.0))


def test_a_channel_without_deviation_is_clipped_like_a_number():
    mean, std = clip_moments(np.array([-2.0, 0.3, 9.0]), np.zeros(3), 0.0, 6.0)
    np.testing.assert_allclose(mean, [0.0, 0.3, 6.0], atol=1e-9)
    np.testing.assert_allclose(std, 0.0, atol=1e-9)


def test_sums_and_averages():
    other = np.array([1.0, -1.0, 0.0, 2.0]), np.array([1.0, 0.1, 0.5, 0.5])
    assert_moments(sum_moments((MEAN, STD), other), normal(1, MEAN, STD) + normal(2, *other))
    pooled = np.mean([normal(s, MEAN, STD) for s in range(int(AVERAGED_VALUES))], axis=0)
    assert_moments(average_moments(MEAN, STD), pooled)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_linear_layers(groups):
    rng = np.random.default_rng(0)
    out, taps = 8, 3
    weight, bias = rng.standard_normal((out, 4 // groups, taps)), rng.standard_normal(out)
    found = linear_moments(weight, bias, MEAN, STD, groups)
    assert found is not None
    made = np.zeros((COUNT, out))
    for tap in range(taps):  # every tap reads another, independent position
        x = normal(tap, MEAN, STD)
        for channel in range(out):
            first = channel // (out // groups) * (4 // groups)
            made[:, channel] += x[:, first : first + 4 // groups] @ weight[channel, :, tap]
    assert_moments(found, made + bias)


def test_linear_layers_of_other_shapes_have_no_moments():
    assert linear_moments(np.ones((2, 3)), np.zeros(2), MEAN, STD, 1) is None
    assert linear_moments(np.ones((2, 4)), np.zeros(3), MEAN, STD, 1) is None


def test_the_normal_distribution():
    x = np.linspace(-4, 4, 801)
    np.testing.assert_allclose(np.gradient(normal_cdf(x), x)[1:-1], normal_pdf(x)[1:-1], atol=2e-5)  # h^2 / 6 |pdf''|
    assert normal_cdf(np.array([0.0]))[0] == 0.5


def test_a_mixture_counts_what_its_samples_count():
    found = mixture_statistics(MEAN, STD, -np.inf, np.inf)
    assert found.low == pytest.approx((MEAN - SIGMAS * STD).min())
    assert found.high == pytest.approx((MEAN + SIGMAS * STD).max())
    edges = np.linspace(*found.grid, found.counts.size + 1)
    samples = normal(7, MEAN, STD).reshape(-1)
    share = np.cumsum(found.counts) / found.counts.sum()
    for level in (-2.0, 0.0, 1.0, 3.0):
        expected = (samples <= level).mean()
        rounding = 0.5e-6 * found.counts.size  # counts are rounded to millionths
        bin_share = found.counts.max() / found.counts.sum()
        at = share[np.searchsorted(edges, level) - 1]
        assert abs(at - expected) <= mean_of_samples(0.5, samples.size) + rounding + bin_share


def test_a_rectified_mixture_knows_its_zeros_and_limits():
    found = mixture_statistics(np.array([0.0]), np.array([1.0]), 0.0, 6.0)
    assert (found.low, found.high) == (0.0, 6.0)
    assert found.zeros == pytest.approx(0.5)
    assert found.samples == 0
