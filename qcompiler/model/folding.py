"""What values are that follow from constants alone: the same arithmetic as the runtime's, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.edit import constant_of

_Array = NDArray[Any]


def folded(value: ir.Value | None) -> _Array | None:
    """Return the array that a value always has, None if that is not known.

    Follows the integer operators that unpack stored weights: division and remainder of numbers that are not negative,
    and what moves or looks up numbers. An operator that fails on its inputs has no value.
    """
    known = constant_of(value)
    node = value.producer() if value is not None else None
    operator = _OPERATORS.get(node.op_type) if node is not None and node.domain in ("", "ai.onnx") else None
    if known is not None or node is None or operator is None:
        return known
    inputs = [array for v in node.inputs if (array := folded(v)) is not None]
    if len(inputs) != len(node.inputs):
        return None
    try:
        return np.asarray(operator(inputs, node.attributes))
    except (IndexError, ValueError, ZeroDivisionError):
        return None


def _axis(attributes: Mapping[str, ir.Attr]) -> int:
    found = attributes.get("axis")
    return 0 if found is None else found.as_int()


def _cast(inputs: list[_Array], attributes: Mapping[str, ir.Attr]) -> _Array:
    return inputs[0].astype(ir.DataType(attributes["to"].as_int()).numpy())


def _slice(inputs: list[_Array], attributes: Mapping[str, ir.Attr]) -> _Array:
    data, starts, ends = inputs  # axes and steps are left out: the first axes, one by one
    cuts = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.asarray(data[tuple(slice(start, end) for start, end in cuts)])


def _pad(inputs: list[_Array], attributes: Mapping[str, ir.Attr]) -> _Array:
    if "mode" in attributes:
        raise ValueError("only zeros are added")
    data, amounts = inputs  # zeros; before all axes, then behind all of them
    return np.pad(data, np.reshape(amounts, (2, -1)).T.tolist())


_OPERATORS: dict[str, Callable[[list[_Array], Mapping[str, ir.Attr]], _Array]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Cast": _cast,
    "Concat": lambda inputs, attributes: np.concatenate(inputs, _axis(attributes)),
    "Div": lambda inputs, _: inputs[0] // inputs[1],
    "Expand": lambda inputs, _: inputs[0] * np.ones(inputs[1].tolist(), inputs[0].dtype),
    "Gather": lambda inputs, attributes: np.take(inputs[0], inputs[1], _axis(attributes)),
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "Mod": lambda inputs, _: np.mod(inputs[0], inputs[1]),
    "Pad": _pad,
    "Range": lambda inputs, _: np.arange(int(inputs[0]), int(inputs[1]), int(inputs[2]), dtype=inputs[0].dtype),
    "Reshape": lambda inputs, _: inputs[0].reshape(inputs[1].tolist()),
    "Slice": _slice,
}
