"""Operators that move, cut, join and repeat; and those that compute with shapes, on the CPU in int64."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as nn
from torch import Tensor

from qcompiler.executor.operator import Kernel, Maker, Operator, has_one_row, plain


def _reshape(op: Operator) -> Kernel:
    copies, one_row = not op.integer("allowzero", 0), has_one_row(op)

    def kernel(x: Tensor, shape: Tensor) -> Tensor:
        """Reshape; where the file fixes the batch at 1 and more rows come, the first dimension grows with them."""
        wanted = [int(d) for d in shape.tolist()]
        if copies:
            wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
        count = math.prod(wanted)
        if -1 in wanted:
            if one_row and wanted[0] == 1:
                wanted[0] = x.shape[0]
        elif 0 < count < x.numel() and x.numel() % count == 0:
            wanted[0] *= x.numel() // count
        return x.reshape(wanted)

    return kernel


def _flatten(op: Operator) -> Kernel:
    axis = op.integer("axis", 1)

    def kernel(x: Tensor) -> Tensor:
        rows = math.prod(x.shape[: axis + x.dim() if axis < 0 else axis])
        return x.reshape(rows, -1) if x.numel() else x.reshape(rows, math.prod(x.shape[axis:]))

    return kernel


def _transpose(op: Operator) -> Kernel:
    order = op.integers("perm")
    return lambda x: x.permute(order or list(reversed(range(x.dim()))))


def _squeeze(op: Operator) -> Kernel:
    fixed = op.integers("axes")

    def kernel(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = fixed if axes is None else [int(a) for a in axes.tolist()]
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))

    return kernel


def _unsqueeze(op: Operator) -> Kernel:
    fixed = op.integers("axes")

    def kernel(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = fixed or [] if axes is None else [int(a) for a in axes.tolist()]
        rank = x.dim() + len(chosen)
        for axis in sorted(a % rank for a in chosen):
            x = x.unsqueeze(axis)
        return x

    return kernel


def _concat(op: Operator) -> Kernel:
    axis = op.integer("axis", 0)
    return lambda *values: torch.cat(values, axis)


def _split(op: Operator) -> Kernel:
    axis, fixed, parts = op.integer("axis", 0), op.integers("split"), op.integer("num_outputs", len(op.node.outputs))

    def kernel(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        total = x.shape[axis]
        each = -(-total // parts)
        chosen = fixed if sizes is None else [int(s) for s in sizes.tolist()]
        if chosen is None:
            chosen = [max(min(each, total - each * i), 0) for i in range(parts)]
        return tuple(torch.split(x, chosen, axis))

    return kernel


def _slice(op: Operator) -> Kernel:
    fixed = op.integers("starts"), op.integers("ends"), op.integers("axes")

    def kernel(x: Tensor, *limits: Tensor | None) -> Tensor:
        given = [None if v is None else [int(i) for i in v.tolist()] for v in limits]
        starts, ends, axes, steps = [*(given or fixed), None, None, None, None][:4]
        if starts is None or ends is None:
            return x
        axes = axes or list(range(len(starts)))
        for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(axes), strict=True):
            x = _cut(x, axis % x.dim(), slice(start, end, step))
        return x

    return kernel


def _cut(x: Tensor, axis: int, limits: slice) -> Tensor:
    """Return a slice as NumPy takes it, but for an end below -size, which with a negative step includes 0."""
    size = x.shape[axis]
    first, last, step = limits.indices(size)
    if step < 0 and limits.stop is not None and limits.stop < -size:
        last = -1
    if step > 0:
        length = max(last - first, 0)
        x = x.narrow(axis, min(first, size), length)
        return x if step == 1 else x[(slice(None),) * axis + (slice(None, None, step),)]
    return x.index_select(axis, torch.arange(first, last, step, device=x.device))


PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def _pad(op: Operator) -> Kernel | None:
    mode, fixed, value = op.text("mode", "constant"), op.integers("pads"), op.number("value", 0.0)
    if mode not in PAD_MODES:
        return None

    def kernel(x: Tensor, pads: Tensor | None = None, fill: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        widths = fixed or [] if pads is None else [int(p) for p in pads.tolist()]
        if axes is not None:
            widths = _on_axes(widths, [int(a) % x.dim() for a in axes.tolist()], x.dim())
        if mode == "constant":
            filled: Any = value if fill is None else fill.item()
            rank = x.dim()
            return nn.pad(
                x, [side for a in reversed(range(rank)) for side in (widths[a], widths[rank + a])], value=filled
            )
        return _mirrored(x, widths, mode)

    return kernel


def _on_axes(widths: list[int], axes: list[int], rank: int) -> list[int]:
    full = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        full[axis], full[rank + axis] = widths[place], widths[len(axes) + place]
    return full


def _mirrored(x: Tensor, widths: list[int], mode: str) -> Tensor:
    """Pad by reading inner elements again, axis by axis; negative widths cut."""
    rank = x.dim()
    for axis in range(rank):
        begin, end = widths[axis], widths[rank + axis]
        if not begin and not end:
            continue
        size = x.shape[axis]
        places = torch.arange(-begin, size + end)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "wrap":
            places = places % size
        else:
            period = max(2 * (size - 1), 1)
            places = places % period
            places = torch.where(places >= size, period - places, places)
        x = x.index_select(axis, places.to(x.device))
    return x


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(int(d) for d in shape.tolist())))


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat([int(r) for r in repeats.tolist()])


def _shape(op: Operator) -> Kernel:
    start, end = op.integer("start", 0), op.integer("end", 2**31)
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _constant_of_shape(op: Operator) -> Kernel:
    found = op.tensor("value")
    value = torch.zeros((), device=op.device) if found is None else found.reshape(())
    return lambda shape: value.expand([int(d) for d in shape.tolist()])


def _range(op: Operator) -> Kernel:
    def kernel(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
        return start.reshape(()) + torch.arange(count, dtype=start.dtype, device=start.device) * delta.reshape(())

    return kernel


def _depth_to_space(op: Operator) -> Kernel:
    block, crd = op.integer("blocksize", 1), op.text("mode", "DCR") == "CRD"

    def kernel(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        inner = c // block**2
        shape = (n, inner, block, block, h, w) if crd else (n, block, block, inner, h, w)
        order = (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2)
        return x.reshape(shape).permute(order).reshape(n, inner, h * block, w * block)

    return kernel


def _space_to_depth(op: Operator) -> Kernel:
    block = op.integer("blocksize", 1)

    def kernel(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return blocks.reshape(n, c * block**2, h // block, w // block)

    return kernel


OPERATORS: dict[str, Maker] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": plain(_expand),
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": plain(_size),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": plain(_tile),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operator -> maker of its kernel."""

HOST_INPUTS: dict[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "CumSum": frozenset({1}),
    "Expand": frozenset({1}),
    "OneHot": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
}
"""Operator -> inputs that are read as Python numbers, and so stay on the CPU."""
