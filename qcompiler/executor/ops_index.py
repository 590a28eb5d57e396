"""Operators that read or write at places that are data: tables, sorting, masks."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.executor.operator import Kernel, Maker, Operator, plain


def _gather(op: Operator) -> Kernel:
    axis = op.integer("axis", 0)

    def kernel(x: Tensor, places: Tensor) -> Tensor:
        size = x.shape[axis]
        flat = places.to(device=x.device, dtype=torch.int64).reshape(-1)
        found = x.index_select(axis, torch.where(flat < 0, flat + size, flat))
        where = axis % x.dim()
        return found.reshape((*x.shape[:where], *places.shape, *x.shape[where + 1 :]))

    return kernel


def _gather_elements(op: Operator) -> Kernel:
    axis = op.integer("axis", 0)

    def kernel(x: Tensor, places: Tensor) -> Tensor:
        wanted = places.to(device=x.device, dtype=torch.int64)
        return torch.gather(x, axis, torch.where(wanted < 0, wanted + x.shape[axis], wanted))

    return kernel


def _gather_nd(op: Operator) -> Kernel | None:
    if op.integer("batch_dims", 0):
        return None
    return lambda x, places: x[tuple(places.to(x.device).movedim(-1, 0))]


def _scatter_elements(op: Operator) -> Kernel | None:
    axis = op.integer("axis", 0)
    if op.text("reduction", "none") != "none":
        return None

    def kernel(x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
        wanted = places.to(device=x.device, dtype=torch.int64)
        return torch.scatter(x, axis, torch.where(wanted < 0, wanted + x.shape[axis], wanted), updates)

    return kernel


def _scatter_nd(op: Operator) -> Kernel | None:
    if op.text("reduction", "none") != "none":
        return None

    def kernel(x: Tensor, places: Tensor, updates: Tensor) -> Tensor:
        return x.index_put(tuple(places.to(x.device).movedim(-1, 0)), updates)

    return kernel


def _arg(largest: bool) -> Maker:
    def make(op: Operator) -> Kernel:
        axis, keep, last = (
            op.integer("axis", 0),
            bool(op.integer("keepdims", 1)),
            bool(op.integer("select_last_index", 0)),
        )

        def kernel(x: Tensor) -> Tensor:
            # Of equal elements PyTorch promises none in particular; the specification wants the first, or the last.
            best = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
            hits = (x == best).to(torch.int8)
            if not last:
                return _first(hits, axis, keep)
            return x.shape[axis] - 1 - _first(hits.flip(axis), axis, keep)

        return kernel

    return make


def _first(hits: Tensor, axis: int, keep: bool) -> Tensor:
    """Return the place of the first 1 along an axis."""
    order = torch.arange(hits.shape[axis], 0, -1, device=hits.device, dtype=torch.int64)
    shape = [1] * hits.dim()
    shape[axis] = -1
    return torch.argmax(hits * order.reshape(shape), axis, keepdim=keep)


def _top_k(op: Operator) -> Kernel | None:
    axis, largest = op.integer("axis", -1), bool(op.integer("largest", 1))
    if op.version < 10:
        return None

    def kernel(x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        """Return the k first of a stable order: of equal elements the one of lower index is first."""
        found, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        k = int(count.item())
        return found.narrow(axis, 0, k), places.narrow(axis, 0, k)

    return kernel


def _one_hot(op: Operator) -> Kernel:
    axis = op.integer("axis", -1)

    def kernel(places: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size = int(depth.reshape(()).item())
        wanted = places.to(torch.int64)
        wanted = torch.where(wanted < 0, wanted + size, wanted)
        hot = wanted.unsqueeze(-1) == torch.arange(size, device=places.device)
        return torch.where(hot, values[1], values[0]).movedim(-1, axis)

    return kernel


def _cumulative_sum(op: Operator) -> Kernel:
    exclusive, backwards = bool(op.integer("exclusive", 0)), bool(op.integer("reverse", 0))

    def kernel(x: Tensor, where: Tensor) -> Tensor:
        axis = int(where.reshape(()).item())
        turned = x.flip(axis) if backwards else x
        total = torch.cumsum(turned, axis, dtype=x.dtype)
        total = total - turned if exclusive else total
        return total.flip(axis) if backwards else total

    return kernel


def _triangle(op: Operator) -> Kernel:
    cut = torch.triu if op.integer("upper", 1) else torch.tril
    return lambda x, k=None: cut(x, 0 if k is None else int(k.reshape(()).item()))


def _nonzero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t().contiguous().cpu()


OPERATORS: dict[str, Maker] = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "CumSum": _cumulative_sum,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": plain(_nonzero),
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "Trilu": _triangle,
}
"""Operator -> maker of its kernel."""
