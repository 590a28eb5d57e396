"""Plausible inputs for a model without data: to compare two models, not to calibrate one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.dataset import Dataset, Feeds, InputSpec, spec_digest

FREE_SIZE = 16
FREE_IMAGE_SIZE = 64
FREE_SIGNAL_SIZE = 256
_CHANNELS = (1, 3, 4)
_ZERO_NAMES = ("type", "indic", "index")
"""Integer inputs for which 0 is always valid: token types, and places in a table of unknown length."""
_WORDS = ("a", "model", "of", "the", "quick", "brown", "fox", "42")
_BATCH_NAME = re.compile(r"(?i)^(n|b|batch|batch_?size|bs)$|batch")


def synthetic_inputs(inputs: Sequence[InputSpec], count: int, seed: int) -> Dataset:
    """Return ``count`` generated samples; the same arguments always give the same values.

    Floats are standard normal, token ids small non-negative integers, masks ones, token types and indices
    zeros, 8-bit pixels uniform. Of the dimensions that the model leaves open the batch becomes 1, image sides
    64, rows of floats 256 and all others 16; a symbol has one size everywhere, and a sum of symbols the sum
    of their sizes.
    """
    return _Synthetic(tuple(inputs), count, seed)


@dataclass(frozen=True, eq=False)
class _Synthetic:
    inputs: tuple[InputSpec, ...]
    count: int
    seed: int

    preprocessing = "none (generated values)"
    notes = ()
    row_names = ()

    @property
    def source(self) -> str:
        samples = "1 sample" if self.count == 1 else f"{self.count} samples"
        return f"synthetic inputs ({samples} generated from seed {self.seed}, not real data)"

    @cached_property
    def fingerprint(self) -> str:
        text = f"synthetic 1 {spec_digest(self.inputs)} {self.count} {self.seed}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def rows_per_sample(self) -> int:
        return self.inputs[0].batch if self.inputs else 1

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = _symbol_sizes(self.inputs)
        return {spec.name: _shape(spec, sizes) for spec in self.inputs}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Feeds:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {
            spec.name: _values(spec, self._shapes[spec.name], np.random.default_rng((self.seed, index, k)))
            for k, spec in enumerate(self.inputs)
        }


def _symbol_sizes(inputs: Sequence[InputSpec]) -> dict[str, int]:
    """Return the size of every symbol; one that is the first axis of any input is a batch everywhere."""
    sizes = {spec.dims[0]: 1 for spec in inputs if spec.dims and isinstance(spec.dims[0], str)}
    for spec in inputs:
        for axis, dim in enumerate(spec.dims):
            if isinstance(dim, str) and "+" not in dim:
                sizes.setdefault(dim, 1 if _BATCH_NAME.search(dim) else _free_size(spec, axis))
    return sizes


def _free_size(spec: InputSpec, axis: int) -> int:
    recurrent = len(spec.dims) == 3 and isinstance(spec.dims[0], int) and spec.dims[0] > 1
    if axis == 0 or (recurrent and axis == 1):
        # The state of recurrent layers is (layers, batch, width).
        return 1
    has_channels = len(spec.dims) == 4 and (spec.dims[1] in _CHANNELS or spec.dims[3] in _CHANNELS)
    if has_channels:
        return FREE_IMAGE_SIZE
    # A row of floats of any length is mostly a signal, and filters and windows need more than a few values.
    return FREE_SIGNAL_SIZE if len(spec.dims) == 2 and spec.dtype.kind == "f" else FREE_SIZE


def _shape(spec: InputSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    shape = []
    for axis, dim in enumerate(spec.dims):
        if isinstance(dim, int):
            shape.append(dim)
        elif isinstance(dim, str) and dim in sizes:
            shape.append(sizes[dim])
        elif isinstance(dim, str):
            # An exporter's sum, such as "past_sequence + 1": the axis must be as long as its parts together.
            terms = [term.strip() for term in dim.split("+")]
            shape.append(sum(int(t) if t.isdecimal() else sizes.get(t, _free_size(spec, axis)) for t in terms))
        else:
            shape.append(_free_size(spec, axis))
    return tuple(shape)


def _values(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    name, dtype = spec.name.lower(), spec.dtype
    if dtype.hasobject:
        return generator.choice(np.array(_WORDS, dtype=object), size=shape).astype(object).reshape(shape)
    if dtype.kind == "b":
        return np.ones(shape, bool) if "mask" in name else np.asarray(generator.integers(0, 2, shape), bool)
    if dtype.kind == "c":
        return np.asarray(generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(dtype)
    if dtype.kind not in "iu":
        return np.asarray(generator.standard_normal(shape, dtype=np.float32)).astype(dtype)
    return _integers(name, dtype, shape, generator)


def _integers(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    if any(word in name for word in _ZERO_NAMES):
        return np.zeros(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    if "mask" in name or len(shape) < 2:
        # Lone integers are lengths, axes, rates or counts: 1 is valid for nearly all of them.
        return np.ones(shape, dtype)
    if dtype.itemsize == 1 and len(shape) > 2:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return generator.integers(0, 8, shape, dtype=dtype)
