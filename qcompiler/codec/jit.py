"""Compiling hot loops where numba is installed; without it they stay Python, and faster NumPy code is used instead."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

AVAILABLE = importlib.util.find_spec("numba") is not None
"""True if loops are compiled."""


def compiled(function: _Function) -> _Function:
    """Return a function compiled to machine code of this processor, which other threads may run beside it.

    The code is kept beside the source, or in the user's cache where that is read-only. Numbers wrap around as in
    NumPy, floating point keeps its order.
    """
    if not AVAILABLE:
        return function
    import numba

    made: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return cast("_Function", made)
