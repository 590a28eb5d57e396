"""Fixed-to-fixed streams: numbers come back exactly, and take what the method promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.codec import fixed_to_fixed, jit
from qcompiler.codec.fixed_to_fixed import decrypt, density_variation, encrypt, even_geometry, geometry_for
from qcompiler.codec.gaps import pack_gaps, unpack_gaps
from qcompiler.codec.xor_code import REGISTERS, XorCode, outputs_for
from qcompiler.errors import QCompileError

needs_numba = pytest.mark.skipif(not jit.AVAILABLE, reason="numba is not installed: so many weights take too long")
quick = sorted(set(REGISTERS) - {"8-2"})


def sparse(count: int, sparsity: float, planes: int = 8, seed: int = 0) -> np.ndarray:
    """Return random numbers of which a share is 0."""
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if planes <= 8 else np.uint32
    numbers = rng.integers(1, 1 << planes, count, dtype=np.uint64).astype(dtype)
    numbers[rng.random(count) < sparsity] = 0
    return numbers


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(quick),
    count=st.integers(1, 600),
    sparsity=st.sampled_from([0.0, 0.3, 0.7, 0.9, 0.99, 1.0]),
    planes=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 32]),
    interleaved=st.booleans(),
    seed=st.integers(0, 100),
)
def test_numbers_come_back(name, count, sparsity, planes, interleaved, seed):
    numbers = sparse(count, sparsity, planes, seed)
    code = XorCode(name, outputs_for(float((numbers == 0).mean())))
    stored = encrypt(numbers, planes, code, interleaved=interleaved)
    assert np.array_equal(decrypt(stored), numbers)
    assert decrypt(stored).dtype == numbers.dtype


@needs_numba
def test_numbers_come_back_from_the_largest_code():
    numbers = sparse(900, 0.9, 3)
    assert np.array_equal(decrypt(encrypt(numbers, 3, XorCode("8-2", 80))), numbers)


def test_float_weights_come_back_bit_for_bit():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(800).astype(np.float32)
    weights[rng.random(800) < 0.8] = 0.0
    weights[:4] = [np.nan, np.inf, 1e-42, -0.0]
    numbers = weights.view(np.uint32)
    stored = encrypt(numbers, 32, XorCode("1-12", outputs_for(0.8)))
    assert np.array_equal(decrypt(stored), numbers)
    assert 30 not in stored.stored or 29 not in stored.stored  # exponents of weights are nearly constant


@pytest.mark.parametrize("rate", [16, 80])
def test_any_rate_is_exact(rate):
    """Too few bits a byte waste, too many need corrections; neither loses anything."""
    numbers = sparse(2000, 0.8)
    stored = encrypt(numbers, 8, XorCode("8-1", rate))
    assert np.array_equal(decrypt(stored), numbers)
    assert (stored.corrections.size > 100) == (rate == 80)


# -- what the method promises --------------------------------------------------------------------------------

BANDS = {"8-0": (92.5, 94.0), "8-1": (98.2, 99.0), "1-12": (98.3, 99.1)}
"""Percent of unpruned random bits that are made right at S = 0.9 and 80 bits a byte; sampling leaves 0.1."""


@needs_numba
@pytest.mark.parametrize("name", BANDS)
def test_efficiency_at_the_entropy_rate(name):
    numbers = sparse(50_000, 0.9)
    found = encrypt(numbers, 8, XorCode(name, 80)).efficiency()
    assert sorted(found) == list(range(8))
    low, high = BANDS[name]
    assert low <= np.mean(list(found.values())) <= high


@needs_numba
def test_efficiency_of_the_largest_code():
    found = encrypt(sparse(50_000, 0.9, planes=1, seed=5) * np.uint8(2), 2, XorCode("8-2", 80))
    assert found.stored == ()  # one bit of every kept number: constant planes
    numbers = sparse(30_000, 0.9, planes=2)
    found = encrypt(numbers, 2, XorCode("8-2", 80))
    assert 99.0 <= np.mean(list(found.efficiency().values())) <= 99.8


@needs_numba
@pytest.mark.parametrize("name", ["8-1", "1-12"])
def test_memory_reduction(name):
    assert encrypt(sparse(131_072, 0.9), 8, XorCode(name, 80)).memory_reduction() >= 88.5


def test_memory_reduction_counts_streams_and_corrections():
    stored = encrypt(sparse(4000, 0.9), 8, XorCode("8-1", 80), interleaved=False)
    bits = 8 * (stored.streams.size + stored.corrections.size)
    assert stored.memory_reduction() == 100 * (1 - bits / 32000)
    assert stored.streams.size == 8 * (1 + 50)


@needs_numba
def test_interleaving_evens_out_rows_of_different_density():
    rng = np.random.default_rng(0)
    density = rng.gamma(1 / 0.8**2, 0.1 * 0.8**2, 128)  # coefficient of variation 0.8
    numbers = rng.integers(1, 256, (128, 512)).astype(np.uint8)
    numbers[rng.random(numbers.shape) >= density[:, None]] = 0
    code = XorCode("1-12", outputs_for(float((numbers == 0).mean())))
    found = {}
    for interleaved in (False, True):
        stored = encrypt(numbers, 8, code, interleaved=interleaved)
        assert np.array_equal(decrypt(stored), numbers.reshape(-1))
        variation = density_variation(numbers, stored.geometry)
        found[interleaved] = np.mean(list(stored.efficiency().values())), variation
    assert found[True][0] >= found[False][0] + 4
    assert found[True][1] < found[False][1] / 2


def test_blocks_do_not_follow_columns():
    """As many blocks as a row has weights: each would hold one column."""
    rng = np.random.default_rng(0)
    density = np.where(np.arange(64) % 2, 0.18, 0.02)
    kept = rng.random((80, 64)) < density
    code = XorCode("8-1", 80)
    assert geometry_for(code, kept.size).blocks == 64
    assert density_variation(kept, geometry_for(code, kept.size)) > 0.8
    found = even_geometry(code, kept.reshape(-1))
    assert found.blocks in (65, 66)
    assert density_variation(kept, found) < 0.4
    even = np.arange(80 * 64) % 9 == 0
    assert even_geometry(code, even) == geometry_for(code, even.size)


def test_planes_of_mostly_ones_are_inverted():
    numbers = sparse(4000, 0.9)
    numbers[numbers > 0] |= 0x50
    numbers[np.flatnonzero(numbers)[0]] &= 0xEF  # but one
    stored = encrypt(numbers, 8, XorCode("8-1", 80))
    assert {4, 6} <= set(stored.inverted)
    assert not {4, 6} & set(stored.stored)
    assert np.array_equal(decrypt(stored), numbers)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 500])
def test_constant_planes_take_nothing(sparsity, count):
    numbers = np.full(count, 0 if sparsity else 0xA5, np.uint8)
    stored = encrypt(numbers, 8, XorCode("8-1", 8))
    assert stored.streams.size == stored.corrections.size == 0
    assert np.array_equal(decrypt(stored), numbers)


# -- many parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick)
def test_threads_change_no_byte(name, monkeypatch):
    monkeypatch.setitem(fixed_to_fixed.LONGEST, name, 7)
    numbers, code = sparse(2345, 0.8), XorCode(name, 40)
    first, second = (encrypt(numbers, 8, code, threads=n) for n in (1, 3))
    assert first.geometry.segments == 9
    assert np.array_equal(first.streams, second.streams)
    assert np.array_equal(first.corrections, second.corrections)
    assert np.array_equal(decrypt(first), numbers)


def test_progress_goes_up_to_all_bits(monkeypatch):
    monkeypatch.setitem(fixed_to_fixed.LONGEST, "1-12", 16)
    told: list[tuple[int, int]] = []
    encrypt(sparse(1000, 0.8), 8, XorCode("1-12", 40), interleaved=False, told=lambda *at: told.append(at))
    assert len(told) == 16
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == 8 * 2 * 13 * 40


@pytest.mark.parametrize(("count", "segments", "blocks"), [(1, 1, 1), (80 * 1024, 1, 1024), (80 * 1024 + 1, 2, 513)])
def test_segments_are_equally_long(count, segments, blocks):
    found = geometry_for(XorCode("1-12", 80), count)
    assert (found.segments, found.blocks) == (segments, blocks)


# -- gaps, and what goes wrong ------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 3000)))
def test_gaps_come_back(places):
    positions = np.asarray(sorted(places), np.int64)
    assert unpack_gaps(pack_gaps(positions)).tolist() == positions.tolist()


def test_gaps_as_documented():
    assert pack_gaps(np.asarray([0, 1, 256, 511 + 256])).tolist() == [1, 1, 255, 0, 0, 1]


def test_numbers_that_do_not_fit_are_refused():
    for numbers in (np.asarray([8], np.uint8), np.zeros(0, np.uint8)):
        with pytest.raises(QCompileError, match="numbers of 3 bits cannot be encoded: none, or too large"):
            encrypt(numbers, 3, XorCode("8-1", 8))


def test_a_correction_behind_the_last_weight_is_refused():
    stored = encrypt(sparse(300, 0.9), 8, XorCode("8-1", 80))
    damaged = replace(stored, corrections=np.full(40, 255, np.uint8))
    with pytest.raises(QCompileError, match="a correction lies behind the last weight"):
        decrypt(damaged)
