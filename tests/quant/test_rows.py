"""Codes of rows: bands of their errors, the metric that they are fitted in, and grids."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.quant.rows import (
    encode_grid,
    encode_signs,
    encode_words,
    error_power,
    learn_words,
    padded,
    sign_words,
    words_of,
)

GAUSSIAN = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
POWER = float(np.square(GAUSSIAN).sum())
PLAIN = np.eye(256)


@pytest.mark.parametrize(
    ("planes", "greedy", "alternating"), [(1, 0.3621, 0.3621), (2, 0.1310, 0.1175), (3, 0.0589, 0.0368)]
)
def test_signs_leave_the_known_share_of_gaussian_power(planes, greedy, alternating):
    first = encode_signs(GAUSSIAN, PLAIN, planes, sweeps=0).error.sum() / POWER
    last = encode_signs(GAUSSIAN, PLAIN, planes, sweeps=15).error.sum() / POWER
    assert first == pytest.approx(greedy, rel=0.03)
    assert last == pytest.approx(alternating, rel=0.03)


def uneven_metric() -> np.ndarray:
    mix = np.random.default_rng(1).standard_normal((256, 256)) * np.geomspace(1, 0.05, 256)
    return mix @ mix.T / 256 + 0.01 * np.eye(256)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("kind", ["words", "signs"])
def test_codes_fit_the_metric_and_not_the_numbers(kind, planes):
    words = learn_words(GAUSSIAN, planes, 0)

    def left(metric: np.ndarray) -> tuple[float, float]:
        """What codes fitted in a metric leave in the uneven one: computed from the codes, and as reported."""
        if kind == "words":
            found = encode_words(GAUSSIAN, metric, words)
            rows = found.scales.astype(np.float32) * words_of(found.codes, words)
        else:
            found = encode_signs(GAUSSIAN, metric, planes)
            signs = sign_words()[found.codes].reshape(len(GAUSSIAN), planes, -1)
            rows = np.einsum("rp,rpn->rn", found.scales.astype(np.float32), signs)
        return float(error_power(GAUSSIAN - rows, uneven_metric()).sum()), float(found.error.sum())

    (fitted, reported), (plain, _) = left(uneven_metric()), left(PLAIN)
    assert fitted < 0.8 * plain
    assert fitted == pytest.approx(reported, rel=1e-3)


def test_words_beat_signs_at_equal_bits():
    words = learn_words(GAUSSIAN, 2, 0)
    for planes in (1, 2):
        by_words = encode_words(GAUSSIAN, PLAIN, words[:planes]).error.sum()
        assert by_words < 0.95 * encode_signs(GAUSSIAN, PLAIN, planes, sweeps=15).error.sum()


def test_the_zero_word_stands_for_a_missing_plane():
    words = learn_words(GAUSSIAN, 3, 0)
    assert words[0, 0].any()
    assert not words[1:, 0].any()


def test_a_seed_decides():
    first, again, other = (learn_words(GAUSSIAN, 1, seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rows_of_zeros_and_of_few_columns():
    rows = padded(np.zeros((3, 5), np.float32))
    assert rows.shape == (3, 8)
    metric = np.eye(8)
    for found in (encode_words(rows, metric, learn_words(GAUSSIAN, 1, 0)), encode_signs(rows, metric, 2)):
        np.testing.assert_array_equal(found.error, 0)
        assert np.isfinite(found.scales).all()


@pytest.mark.parametrize(("bits", "most"), [(2, 0.125), (4, 0.0125), (8, 1e-4)])
def test_grids(bits, most):
    codes, scale, offset = encode_grid(GAUSSIAN, bits, 64)
    assert codes.max() < 2**bits
    whole = codes.astype(np.float32) - 2 ** (bits - 1)
    rows = whole * np.repeat(scale, 64, axis=1) + offset
    assert np.square(GAUSSIAN - rows).sum() / POWER < most
