"""What values are that follow from constants alone: the same arithmetic as the runtime's, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.edit import constant_of

_Array = NDArray[Any]
_Operator = Callable[[list[_Array], Mapping[str, ir.Attr]], _Array]


def folded(value: ir.Value | None) -> _Array | None:
    """Return the array that a value always has, None if that is not known.

    Follows the operators that unpack stored weights: integer arithmetic, with division and remainder of numbers that
    are not negative, and what moves or looks up numbers. An operator that fails on its inputs has no value.
    """
    return _folded(value, {})


def _folded(value: ir.Value | None, known: dict[ir.Value, _Array | None]) -> _Array | None:
    """Return the same; what was found on the way is looked up in ``known``, because values have several uses."""
    if value is None or value not in known:
        found = constant_of(value)
        node = value.producer() if value is not None else None
        operator = _OPERATORS.get(node.op_type) if node is not None and node.domain in ("", "ai.onnx") else None
        if found is not None or node is None or operator is None or value is None:
            return found
        inputs = [array for v in node.inputs if (array := _folded(v, known)) is not None]
        whole = _computed(operator, inputs, node) if len(inputs) == len(node.inputs) else None
        known[value] = _part(whole, inputs, node, value) if node.op_type == "Split" and whole is not None else whole
    return known[value]


def _part(whole: _Array, inputs: list[_Array], node: ir.Node, value: ir.Value) -> _Array | None:
    """Return what of an array one of the outputs of its Split holds."""
    stated = node.attributes.get("split")
    lengths = inputs[1].tolist() if len(inputs) > 1 else list(stated.as_ints()) if stated is not None else []
    if sum(lengths) != len(whole) or "axis" in node.attributes:
        return None
    number = next(n for n, output in enumerate(node.outputs) if output is value)
    start = sum(lengths[:number])
    return whole[start : start + lengths[number]]


def _computed(operator: _Operator, inputs: list[_Array], node: ir.Node) -> _Array | None:
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


def _filled(inputs: list[_Array], attributes: Mapping[str, ir.Attr]) -> _Array:
    value = attributes["value"].as_tensor().numpy()
    return np.full(inputs[0].tolist(), value.reshape(-1)[0], value.dtype)


def _scattered(inputs: list[_Array], attributes: Mapping[str, ir.Attr]) -> _Array:
    if "reduction" in attributes or inputs[1].min(initial=0) < 0:
        raise ValueError("only plain places")
    found = inputs[0].copy()
    np.put_along_axis(found, inputs[1], inputs[2], _axis(attributes))
    return found


def _summed(inputs: list[_Array], attributes: Mapping[str, ir.Attr]) -> _Array:
    if attributes:
        raise ValueError("only sums that begin at the start and hold their own place")
    return np.cumsum(inputs[0], int(inputs[1]), dtype=inputs[0].dtype)


def _integer_product(inputs: list[_Array], _: Mapping[str, ir.Attr]) -> _Array:
    first, second = inputs  # zero points are left out
    return first.astype(np.int32) @ second.astype(np.int32)


def _transposed(inputs: list[_Array], attributes: Mapping[str, ir.Attr]) -> _Array:
    order = attributes.get("perm")
    return np.transpose(inputs[0], None if order is None else order.as_ints())


_OPERATORS: dict[str, _Operator] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Cast": _cast,
    "Concat": lambda inputs, attributes: np.concatenate(inputs, _axis(attributes)),
    "ConstantOfShape": _filled,
    "CumSum": _summed,
    "Div": lambda inputs, _: inputs[0] // inputs[1],
    "Expand": lambda inputs, _: inputs[0] * np.ones(inputs[1].tolist(), inputs[0].dtype),
    "Gather": lambda inputs, attributes: np.take(inputs[0], inputs[1], _axis(attributes)),
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "MatMulInteger": _integer_product,
    "Mod": lambda inputs, _: np.mod(inputs[0], inputs[1]),
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Pad": _pad,
    "Range": lambda inputs, _: np.arange(int(inputs[0]), int(inputs[1]), int(inputs[2]), dtype=inputs[0].dtype),
    "Reshape": lambda inputs, _: inputs[0].reshape(inputs[1].tolist()),
    "ScatterElements": _scattered,
    "Slice": _slice,
    "Split": lambda inputs, _: inputs[0],
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Transpose": _transposed,
    "Xor": lambda inputs, _: np.logical_xor(inputs[0], inputs[1]),
}
