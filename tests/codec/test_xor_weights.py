"""Code words of a fraction of a bit a weight: which there are, the nearest of them, and how they are stored."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.codec.xor_weights import INPUTS, XorRate
from qcompiler.errors import QCompileError

RATES = (12, 15, 17, 20, 24, 40)


@pytest.mark.parametrize(("bits", "outputs"), [(1.0, 12), (0.8, 15), (0.6, 20), (0.4, 30), (0.7, 17), (0.1, 120)])
def test_the_nearest_rate(bits, outputs):
    rate = XorRate.of_bits(bits)
    assert rate.outputs == outputs
    assert rate.bits == pytest.approx(bits, rel=0.01)
    assert XorRate.named(rate.name) == rate


@pytest.mark.parametrize("bits", [0.0, 0.05, 1.1, 2.0])
def test_other_rates_are_refused(bits):
    with pytest.raises(QCompileError, match=r"0\.1 to 1 bits"):
        XorRate.of_bits(bits)


@pytest.mark.parametrize("name", [None, "f2f", "bitmask", "xor 12", "xor 8/10", "xor 12/15 "])
def test_other_encodings_name_no_rate(name):
    assert XorRate.named(name) is None


@pytest.mark.parametrize("outputs", RATES)
def test_the_matrix_is_the_network(outputs):
    """What the shared decoder makes of the bytes is the matrix times the stored bits, modulo 2."""
    rate = XorRate(outputs)
    stored = np.random.default_rng(outputs).integers(0, 2, (8, INPUTS), np.uint8)
    expected = (stored.astype(int) @ rate.matrix.T.astype(int)) % 2
    assert np.array_equal(rate.bits_of(stored, 8 * outputs), expected.reshape(-1))
    assert np.array_equal(rate.words[stored @ (1 << np.arange(INPUTS))], expected)


@pytest.mark.parametrize("outputs", RATES)
def test_every_sum_is_another_one_of_two_bits_and_more(outputs):
    sums = XorRate(outputs).sums
    assert sums.shape == (outputs - INPUTS, INPUTS)
    assert (sums.sum(1) > 1).all()
    assert len({row.tobytes() for row in sums}) == len(sums)


def test_a_format_does_not_change_silently():
    """Files hold the network itself, plans only its name."""
    assert XorRate(15).sums.tolist() == [
        [0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0],
        [0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0],
    ]


@pytest.mark.parametrize("outputs", RATES)
@pytest.mark.parametrize("count", [1, 11, 12, 13, 30, 31, 1000])
def test_stored_bits_are_read_off_the_weight_bits(outputs, count):
    rate = XorRate(outputs)
    rng = np.random.default_rng(count)
    stored = rng.integers(0, 2, (rate.slices(count), INPUTS), np.uint8)
    bits = rate.bits_of(stored, count)
    found = rate.stored_bits(bits)
    assert found is not None
    assert np.array_equal(rate.bits_of(found, count), bits)
    assert rate.streams(found).nbytes == 3 * -(-count // (2 * outputs))


def test_bits_that_no_stored_ones_make():
    rate = XorRate(15)
    bits = rate.bits_of(np.zeros((2, INPUTS), np.uint8), 30)
    for place in range(INPUTS, 15):
        turned = bits.copy()
        turned[place] ^= 1
        assert rate.stored_bits(turned) is None
    turned = bits.copy()
    turned[0] ^= 1
    assert (rate.stored_bits(turned) is None) == bool(rate.sums[:, 0].any())


@pytest.mark.parametrize("outputs", [12, 15, 20])
def test_the_nearest_word_and_what_turning_a_bit_costs(outputs):
    rate = XorRate(outputs)
    costs = np.random.default_rng(1).standard_normal((2100, outputs)).astype(np.float32)  # more than are done at once
    stored = rate.nearest(costs)
    margins = rate.margins(costs, stored)
    for row in (0, 2047, 2048, 2099):
        every = rate.words.astype(np.float64) @ costs[row]
        word = int(stored[row] @ (1 << np.arange(INPUTS)))
        assert every[word] == pytest.approx(every.min(), abs=1e-4)
        for place in range(INPUTS):
            turned = [n for n in range(1 << INPUTS) if (n ^ word) >> place & 1]
            assert margins[row, place] == pytest.approx(every[turned].min() - every[word], abs=1e-4)
    assert (margins >= 0).all()


def test_a_word_that_is_not_the_nearest_has_a_margin_below_0():
    rate = XorRate(15)
    costs = np.ones((2, 15), np.float32)
    assert rate.margins(costs, np.ones((2, INPUTS), np.uint8)).min() < 0


def test_a_whole_bit_is_every_bit_by_itself():
    rate = XorRate(12)
    costs = np.random.default_rng(2).standard_normal((4, 12)).astype(np.float32)
    assert np.array_equal(rate.nearest(costs), (costs < 0).astype(np.uint8))
    assert np.allclose(rate.margins(costs, rate.nearest(costs)), np.abs(costs), atol=1e-5)


def test_the_distortion_of_gaussian_weights():
    """Source of the band: random systematic codes of this rate, 0.42; one bit has 1 - 2 / pi = 0.363."""
    weights = np.random.default_rng(3).standard_normal(30000).astype(np.float32)
    left = {}
    for bits in (1.0, 0.8, 0.6):
        rate = XorRate.of_bits(bits)
        signs = 2.0 * rate.bits_of(rate.nearest(rate.sliced(-weights)), weights.size) - 1
        left[bits] = 1 - float((weights * signs).mean()) ** 2 / float(np.square(weights).mean())
    assert left[1.0] == pytest.approx(0.363, abs=0.01)
    assert left[0.8] == pytest.approx(0.42, abs=0.02)
    assert left[0.6] == pytest.approx(0.51, abs=0.02)
