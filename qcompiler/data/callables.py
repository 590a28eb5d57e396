"""Data from ``module:callable``: the user's own loader."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from qcompiler.data.arrays import Chunk, ChunkedDataset, make_chunk
from qcompiler.data.dataset import InputSpec
from qcompiler.data.npy import MemoryRows
from qcompiler.errors import DataError


def open_callable(spec: str, inputs: Sequence[InputSpec]) -> ChunkedDataset:
    """Call ``module:callable`` without arguments and return what it gives as a dataset held in memory.

    It may return an array (of a model with one input), a dict of arrays, or anything that can be iterated
    over such items, a generator too. Every item holds one sample or a batch of samples, as a file would.

    Raises:
        DataError: it cannot be imported, it failed, or what it gave does not fit the model.
    """
    function = load_callable(spec)
    chunks = []
    try:
        given = function()
        items: Iterable[Any] = (given,) if isinstance(given, (Mapping, np.ndarray)) else given
        for number, item in enumerate(items):
            chunks.append(_chunk(f"item {number} of {spec}", item, inputs))
    except DataError:
        raise
    except Exception as error:  # the user's code may raise anything; it is theirs to mend
        raise DataError(f"{spec} raised {type(error).__name__}: {_one_line(error)}; mend the function") from error
    if not chunks:
        raise DataError(f"{spec} gave no samples; return or yield at least one feeds dict or array")
    return ChunkedDataset(spec, tuple(chunks), tuple(inputs), "by the callable")


def _chunk(where: str, item: object, inputs: Sequence[InputSpec]) -> Chunk:
    arrays = item if isinstance(item, Mapping) else {"": item}
    rows = {str(name): MemoryRows(np.asarray(values)) for name, values in arrays.items()}
    for name, values in rows.items():
        if values.dtype.hasobject and not any(spec.dtype.hasobject for spec in inputs):
            what = f" {name!r}" if name else ""
            raise DataError(f"{where}{what} is no plain array of numbers; yield a feeds dict or a NumPy array")
    return make_chunk(where, rows, inputs)


def load_callable(spec: str) -> Callable[..., Any]:
    """Return the function behind ``module:name``, from the current folder or the Python path.

    Raises:
        DataError: it cannot be imported, or is no function.
    """
    module_name, _, path = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise DataError(
            f"cannot load {spec}: {type(error).__name__}: {_one_line(error)}; "
            f"it must be importable from {here} or from the Python path"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise DataError(f"{spec} is a {type(found).__name__}, not a function; name a callable")
    return cast("Callable[..., Any]", found)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
