"""Mixed-integer programs by HiGHS, without the lines that it prints to standard output by itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Row = tuple[NDArray[np.float64], float]
"""Coefficients of one sum and its upper limit."""


def choose_one_each(
    owner: NDArray[np.int64],
    cost: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    rows: Sequence[Row],
    seconds: float,
) -> tuple[NDArray[np.int64] | None, bool]:
    """Return the option of every group that makes the summed cost least, and whether the answer is proven.

    Args:
        owner: int64, shape (options,): the group of every option, 0 to groups - 1, none of them empty.
        cost: float64, shape (options,).
        allowed: bool, shape (options,): options that may be taken.
        rows: sums that must not exceed their limit.
        seconds: time limit.

    Returns:
        int64 of shape (groups,), indices of options; None where none fit (proven) or none was found in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    count, groups = len(owner), int(owner.max()) + 1
    ones = csr_array((np.ones(count), (owner, np.arange(count))), shape=(groups, count))
    constraints = [LinearConstraint(ones, 1.0, 1.0)]
    constraints += [LinearConstraint(amounts.reshape(1, -1), -np.inf, limit) for amounts, limit in rows]
    bounds = Bounds(0.0, allowed.astype(np.float64))
    options = {"mip_rel_gap": 0.0, "time_limit": seconds}
    with _silent_stdout():
        found = milp(cost, integrality=np.ones(count), bounds=bounds, constraints=constraints, options=options)
    if found.x is None:
        return None, found.status == 2
    members = [np.flatnonzero(owner == group) for group in range(groups)]
    taken = [int(own[int(np.argmax(found.x[own]))]) for own in members]
    return np.asarray(taken, np.int64), found.status == 0


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Send what C code prints to nowhere: HiGHS reports some heuristics whatever its options say."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            try:
                yield
            finally:
                _flush_c()
                os.dup2(kept, 1)
    finally:
        os.close(kept)


def _flush_c() -> None:
    """Empty the buffers of the C library, where it can be asked to; else its lines come out later."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).fflush(None)
