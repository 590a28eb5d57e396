"""The three disjoint sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.data import split
from qcompiler.errors import DataError


@given(st.integers(3, 500), st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
def test_sets_are_disjoint_sorted_full_and_reproducible(n, calibration, verify, seed):
    found = split(n, calibration, verify, seed)
    sets = (found.calibration, found.acceptance, found.verification)
    together = [i for each in sets for i in each]
    assert len(set(together)) == len(together)
    assert all(0 <= i < n for i in together)
    assert all(each and list(each) == sorted(each) for each in sets)
    assert len(found.verification) <= verify
    assert len(found.calibration) + len(found.acceptance) <= max(2, calibration)
    assert found == split(n, calibration, verify, seed)


@pytest.mark.parametrize(("n", "sizes"), [(3, (1, 1, 1)), (10, (5, 1, 4)), (100, (45, 15, 40)), (1000, (96, 32, 128))])
def test_sizes(n, sizes):
    found = split(n, 128, 128, 0)
    assert (len(found.calibration), len(found.acceptance), len(found.verification)) == sizes


def test_all_that_was_asked_for_where_it_fits():
    found = split(500, 100, 400, 0)
    assert len(found.verification) == 400
    assert len(found.calibration) + len(found.acceptance) == 100


def test_sets_are_spread_over_ordered_data():
    """With ten sorted classes of 100, every set holds every class about as often."""
    found = split(1000, 100, 100, 3)
    for indices in (found.calibration, found.verification):
        counts = np.bincount(np.array(indices) // 100, minlength=10)
        assert counts.min() >= len(indices) / 10 - 2.5


def test_seed_matters():
    assert split(500, 100, 100, 0) != split(500, 100, 100, 1)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_samples(n):
    with pytest.raises(DataError, match="at least 3 are needed"):
        split(n, 128, 128, 0)
