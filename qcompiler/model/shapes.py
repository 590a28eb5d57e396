"""Integers that a graph computes, such as shapes: which of their entries are always the same."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.folding import folded

Entries = list[int | None]
_SAME = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape"})
"""Operators behind which the entries are the same, in the same order."""
_MOST_ENTRIES = 4096
"""Larger constants are no shapes."""
_MOST_AXES = 8
"""A slice of a shape that ends before it ends before the shape does."""
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
    "Mod": operator.mod,
}


def whole(value: ir.Value | None) -> NDArray[np.int64] | None:
    """Return computed integers in a row, None unless all of them are known."""
    entries = partly_known(value)
    known = [entry for entry in entries or () if entry is not None]
    return None if entries is None or len(known) != len(entries) else np.asarray(known, np.int64)


def partly_known(value: ir.Value | None) -> Entries | None:
    """Return the entries of computed integers, None for those that are not constant; None if nobody knows how many."""
    if value is None:
        return None
    array = folded(value)
    if array is not None:
        return _entries(array)
    node = value.producer()
    found = _computed(node) if node is not None and node.domain in ("", "ai.onnx") else None
    if found is not None:
        return found
    length = value.shape[0] if value.shape is not None and len(value.shape) == 1 else None
    if value.shape is not None and len(value.shape) == 0:
        length = 1
    return [None] * length if isinstance(length, int) else None


def _entries(array: NDArray[np.generic]) -> Entries | None:
    """Return the integers of a constant: None for what is none, such as a bound of infinity in a mask."""
    if array.size > _MOST_ENTRIES or array.dtype.kind not in "iufb":
        return None
    numbers = [float(v) for v in array.reshape(-1).tolist()] if array.dtype.kind == "f" else array.reshape(-1).tolist()
    return [int(v) if v == v and abs(v) != float("inf") and v == int(v) else None for v in numbers]


def _computed(node: ir.Node) -> Entries | None:
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Shape" and not node.attributes:
        shape = first.shape if first is not None else None
        return None if shape is None else [d if isinstance(d, int) else None for d in shape]
    if node.op_type in _SAME:
        return partly_known(first)
    if node.op_type == "Slice":
        return _part(node)
    if node.op_type == "Gather":
        entries, places = partly_known(first), whole(node.inputs[1])
        return None if entries is None or places is None else [entries[place] for place in places.tolist()]
    parts = [partly_known(v) for v in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if node.op_type == "Concat":
        return [entry for part in known for entry in part]
    if node.op_type in _ARITHMETIC:
        return _pairwise(_ARITHMETIC[node.op_type], *known)
    return None


def _pairwise(apply: Callable[[int, int], int], first: Entries, second: Entries) -> Entries | None:
    size = max(len(first), len(second))
    if {len(first), len(second)} - {1, size}:
        return None
    pairs = zip(first * (size // len(first)), second * (size // len(second)), strict=True)
    return [None if a is None or b is None or (apply in _DIVIDES and not b) else apply(a, b) for a, b in pairs]


_DIVIDES = (operator.floordiv, operator.mod)


def _part(node: ir.Node) -> Entries | None:
    """Return the entries of a slice of computed integers."""
    entries, bounds = partly_known(node.inputs[0]), [whole(v) for v in node.inputs[1:3]]
    strides = whole(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1, np.int64)
    ends = [int(bound[0]) for bound in bounds if bound is not None and bound.size == 1]
    if strides is None or strides.tolist() != [1] or len(ends) < len(bounds):
        return None
    if entries is not None:
        return entries[slice(*ends)]
    first, last = ends
    if first == -1 and last > 0:
        return [None]  # the last of however many
    return [None] * (last - first) if 0 <= first < last <= _MOST_AXES else None
