"""Reductions over axes, which are an attribute in old opsets and an input in new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qcompiler.executor.operator import Kernel, Maker, Operator

Reduction = Callable[[Tensor, list[int]], Any]
"""Reduces a tensor over axes, which stay as axes of size 1."""


def _reduction(function: Reduction) -> Maker:
    def make(op: Operator) -> Kernel:
        fixed, keep = op.integers("axes"), bool(op.integer("keepdims", 1))
        idle = bool(op.integer("noop_with_empty_axes", 0))

        def kernel(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = fixed if axes is None else [int(a) for a in axes.tolist()]
            if not chosen and idle:
                return function(x.unsqueeze(0), [0]).squeeze(0)  # what is done to single elements is done still
            which = sorted({a % max(x.dim(), 1) for a in chosen} if chosen else range(x.dim()))
            found = x if x.dim() == 0 else function(x, which)
            if x.dim() == 0:
                found = function(x.reshape(1), [0]).reshape(())
            return found if keep or not which or x.dim() == 0 else found.squeeze(tuple(which))

        return kernel

    return make


def _sum(x: Tensor, axes: list[int]) -> Tensor:
    return torch.sum(x, axes, keepdim=True, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=True)
    count = torch.Size([x.shape[a] for a in axes]).numel()
    return torch.div(_sum(x, axes), count, rounding_mode="trunc")


def _product(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = torch.prod(x, axis, keepdim=True, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(x.abs(), axes)


def _l2(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(x.square(), axes).sqrt()


def _log_sum(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(x, axes).log()


def _log_sum_exp(x: Tensor, axes: list[int]) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=True)


def _sum_square(x: Tensor, axes: list[int]) -> Tensor:
    return _sum(x.square(), axes)


def _max(x: Tensor, axes: list[int]) -> Tensor:
    return _filled(x, axes, lowest=True) if x.numel() == 0 else x.amax(axes, keepdim=True)


def _min(x: Tensor, axes: list[int]) -> Tensor:
    return _filled(x, axes, lowest=False) if x.numel() == 0 else x.amin(axes, keepdim=True)


def _filled(x: Tensor, axes: list[int], *, lowest: bool) -> Tensor:
    """Return the extreme of no elements: an infinity, or the end of the integers."""
    ends = (-torch.inf, torch.inf)
    if not x.is_floating_point():
        ends = (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return torch.full(shape, ends[0] if lowest else ends[1], dtype=x.dtype, device=x.device)


OPERATORS: dict[str, Maker] = {
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _reduction(_max),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_min),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(_sum_square),
}
"""Operator -> maker of its kernel."""
