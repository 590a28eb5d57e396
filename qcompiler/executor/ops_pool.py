"""Pooling, with the padding and rounding that PyTorch's own layers lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nn
from torch import Tensor

from qcompiler.executor.operator import Kernel, Maker, Operator
from qcompiler.executor.ops_nn import blocked, same_padding, torch_padding

MAX_POOLS = {1: nn.max_pool1d, 2: nn.max_pool2d, 3: nn.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Any]] = {1: nn.avg_pool1d, 2: nn.avg_pool2d, 3: nn.avg_pool3d}


@dataclass(frozen=True, slots=True)
class _Window:
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    auto: str
    ceil: bool

    def padding(self, sizes: list[int]) -> tuple[list[int], list[int]]:
        """Return ONNX padding, and what rounding up adds at the ends, where windows may reach beyond it."""
        rank = len(self.kernel)
        widths = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        pads = list(self.pads)
        if self.auto.startswith("SAME"):
            pads = same_padding(sizes, widths, self.strides, self.auto == "SAME_UPPER")
        beyond = [0] * rank
        for axis in range(rank if self.ceil else 0):
            room = sizes[axis] + pads[axis] + pads[rank + axis]
            count = -(-(room - widths[axis]) // self.strides[axis]) + 1
            if (count - 1) * self.strides[axis] >= sizes[axis] + pads[axis]:
                count -= 1  # a window that starts in the padding at the end
            beyond[axis] = max((count - 1) * self.strides[axis] + widths[axis] - room, 0)
        return pads, beyond


def _window(op: Operator) -> _Window:
    kernel = op.integers("kernel_shape") or []
    rank = len(kernel)
    return _Window(
        kernel=kernel,
        strides=op.integers("strides") or [1] * rank,
        dilations=op.integers("dilations") or [1] * rank,
        pads=op.integers("pads") or [0] * (2 * rank),
        auto=op.text("auto_pad", "NOTSET"),
        ceil=bool(op.integer("ceil_mode", 0)),
    )


def _max_pool(op: Operator) -> Kernel | None:
    window = _window(op)
    rank = len(window.kernel)
    if op.outputs > 1 or rank not in MAX_POOLS:
        return None
    pool = MAX_POOLS[rank]

    def kernel(x: Tensor) -> Tensor:
        pads, beyond = window.padding(list(x.shape[2:]))
        begin, end = pads[:rank], [p + b for p, b in zip(pads[rank:], beyond, strict=True)]
        if begin != end or any(2 * p > k for p, k in zip(begin, window.kernel, strict=True)):
            lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
            x, begin = nn.pad(x, torch_padding([*begin, *end]), value=lowest), [0] * rank
        return pool(blocked(x), window.kernel, window.strides, begin, window.dilations)

    return kernel


def _average_pool(op: Operator) -> Kernel | None:
    window, counted = _window(op), bool(op.integer("count_include_pad", 0))
    rank = len(window.kernel)
    if rank not in AVERAGE_POOLS or any(d != 1 for d in window.dilations):
        return None
    pool = AVERAGE_POOLS[rank]

    def kernel(x: Tensor) -> Tensor:
        pads, beyond = window.padding(list(x.shape[2:]))
        if not any(pads) and not any(beyond):
            return pool(x, window.kernel, window.strides)
        inside = torch.ones_like(x[:1, :1])
        inside = nn.pad(inside, torch_padding(pads), value=float(counted))
        outer = torch_padding([0] * rank + beyond)
        total = pool(nn.pad(nn.pad(x, torch_padding(pads)), outer), window.kernel, window.strides)
        return total / pool(nn.pad(inside, outer), window.kernel, window.strides)

    return kernel


def _global_average(op: Operator) -> Kernel:
    return lambda x: x.mean(list(range(2, x.dim())), keepdim=True)


def _global_max(op: Operator) -> Kernel:
    return lambda x: x.amax(list(range(2, x.dim())), keepdim=True)


OPERATORS: dict[str, Maker] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
}
"""Operator -> maker of its kernel."""
