"""Batches: samples joined into one run, and along which axis of every value its samples lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from qcompiler.errors import DataError, ModelError
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.executor.operator import to_torch


@dataclass(frozen=True, slots=True)
class Counted:
    """Integers some of which are multiples of the number of samples, such as the shape of a value with samples in it.

    Attributes:
        grows: which entries, flat.
    """

    grows: tuple[bool, ...]

    def at(self, value: torch.Tensor, samples: int, wanted: int) -> torch.Tensor:
        """Return for ``wanted`` samples what was made for ``samples``."""
        grows = torch.tensor(self.grows, device=value.device).reshape(value.shape)
        return torch.where(grows, value // max(samples, 1) * wanted, value)


@dataclass(frozen=True, slots=True)
class Entangled:
    """Integers that mix samples, such as places in a flattened batch: what they index may still be told apart."""


Axis = int | Counted | Entangled | None
Axes = Mapping[str, Axis]
"""Value name -> the axis along which its samples lie, None for a value that does not depend on them."""

FREE = 8
"""Size of unknown dimensions in the probe, beside the batch."""
CLOSE = 1e-3
"""Relative difference that other orders of summation may make; what mixes samples differs by as much as they do."""


def stack(samples: Iterable[Mapping[str, NDArray[np.generic]]], executor: TorchExecutor) -> Tensors:
    """Return samples joined along their first axis, as feeds of an executor; a scalar input is taken from the first.

    Args:
        samples: at least one, each with one array per graph input.
        executor: whose device they go to.

    Raises:
        DataError: there are none, or their shapes differ beyond the first axis.
    """
    rows = list(samples)
    if not rows:
        raise DataError("no samples to search with; give more with --data")
    try:
        joined = {
            name: np.concatenate([np.asarray(r[name]) for r in rows]) if np.ndim(first) else first
            for name, first in rows[0].items()
        }
    except ValueError as error:
        raise DataError(f"samples of different shapes do not fit into one batch ({error})") from None
    return {name: to_torch(array, executor.device) for name, array in joined.items()}


def batch_axes(executor: TorchExecutor) -> Axes | None:
    """Return along which axis the samples of every value lie; None if samples must run one by one.

    Two made-up samples are run alone and together. They may share a run only if every value inside is then exactly
    the two values joined along one axis, or the same for both. So a file whose batch is fixed at 1 runs in batches
    where its operators allow it, and what mixes samples is found out. Integers may also count the samples or point
    into the batch, as those do that compute shapes and masks.
    """
    names = [n for s in executor.steps for n in s.outputs if n]
    first, second = _made_up(executor.model, 1), _made_up(executor.model, 2)
    if first is None or second is None:
        return None
    one, two = ({n: to_torch(a, executor.device) for n, a in feeds.items()} for feeds in (first, second))
    both = {n: torch.cat([a, two[n]]) if a.dim() else a for n, a in one.items()}
    try:
        with torch.no_grad():
            runs = [executor.run(feeds, names) | feeds for feeds in (one, two, both)]
    except ModelError:
        return None
    axes: dict[str, Axis] = {}
    for name in (*executor.inputs, *names):
        found = _axis(*(values[name] for values in runs))
        if isinstance(found, bool):
            return None
        axes[name] = found
    return axes


def _axis(one: torch.Tensor, two: torch.Tensor, both: torch.Tensor) -> Axis | bool:
    """Return the axis along which the third is the first two, None if all are the same, False if neither holds."""
    found = _plain_axis(one, two, both)
    if found is not False or one.is_floating_point():
        return found
    if one.shape == two.shape == both.shape and torch.equal(one, two):
        grows = both != one
        if bool((both[grows] == 2 * one[grows]).all()):
            return Counted(tuple(grows.reshape(-1).tolist()))
    return Entangled()


def _plain_axis(one: torch.Tensor, two: torch.Tensor, both: torch.Tensor) -> int | bool | None:
    if one.shape != two.shape or one.dim() != both.dim():
        return False
    grown = [a for a in range(one.dim()) if both.shape[a] == 2 * one.shape[a] != one.shape[a]]
    if one.shape == both.shape:
        return None if _close(one, two) and _close(one, both) else False
    if len(grown) != 1 or sum(a != b for a, b in zip(one.shape, both.shape, strict=True)) != 1:
        return False
    return grown[0] if _close(torch.cat([one, two], grown[0]), both) else False


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    largest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=CLOSE, atol=CLOSE * largest, equal_nan=True))


def _made_up(model: ir.Model, seed: int) -> dict[str, NDArray[np.generic]] | None:
    """Return one sample of random inputs, None where an input has no batch of one at its front."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in model.graph.inputs:
        if value.shape is None or value.dtype is None:
            return None
        shape = [d if isinstance(d, int) else FREE for d in value.shape]
        if shape and isinstance(value.shape[0], int) and shape[0] != 1:
            return None
        shape[:1] = [1] * len(shape[:1])
        dtype = value.dtype.numpy()
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[value.name or ""] = np.asarray(drawn).astype(dtype)
    return feeds


def rows_of(feeds: Mapping[str, torch.Tensor], rows: slice) -> Tensors:
    """Return some rows of stacked feeds; scalar inputs are shared."""
    return {name: value[rows] if value.dim() else value for name, value in feeds.items()}


def row_count(feeds: Mapping[str, torch.Tensor]) -> int:
    """Return how many rows stacked feeds have."""
    return max((int(v.shape[0]) for v in feeds.values() if v.dim()), default=1)
