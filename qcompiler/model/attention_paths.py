"""The way from a projection to attention: which rows of a weight become which head, whatever an exporter wrote between.

Nothing is matched by its exact form. The operators between are walked back to a product with a constant, and the
numbers of that product's output channels are then sent through the same operators, so that reshapes, transposes,
splits, packed projections and repeated heads all come out as what they are: a choice of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.edit import constant_of
from qcompiler.model.shapes import partly_known, whole
from qcompiler.model.weights import is_float_constant, scales_operands

Channels = NDArray[np.int64]

MOVING = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Gather", "Expand"})
PASSING = frozenset({"Identity", "Cast", "Dropout"})
MAX_STEPS = 64
MOST_NUMBERS = 1 << 26
"""Channel numbers that are sent through; fixed batch and length multiply them."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotary embedding between a projection and the product of queries and keys.

    Each pair of dimensions (i, i + size/2), or (2i, 2i + 1) if interleaved, is turned by an angle of its position.

    Attributes:
        cos / sin: names of values or constants. Along the last axis they have one entry per dimension, or one per
            pair if ``halved``.
        positions: name of the value with row numbers of ``cos`` and ``sin``; "" where they are one row per position.
        interleaved: which dimensions are pairs.
        halved: one entry per pair.
    """

    cos: str
    sin: str
    positions: str = ""
    interleaved: bool = False
    halved: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """What lies between a projection and an operand of attention.

    Attributes:
        source: the product with a constant.
        channels: the operand, with the number of the source's output channel in the place of each value; batch and
            length are 1 where they are not fixed.
        rotation: on the way, or None.
        data: what the source multiplies.
    """

    source: ir.Node
    channels: Channels
    rotation: Rotation | None
    data: ir.Value


@dataclass(frozen=True, slots=True)
class _Step:
    node: ir.Node
    output: int


def is_projection(node: ir.Node | None) -> bool:
    """Return True for a product of data with a constant matrix on the right."""
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None or data.const_value is not None or not is_float_constant(weight):
        return False
    return weight.const_value is not None and len(weight.const_value.shape) == 2 and not scales_operands(node)


def output_channels(node: ir.Node) -> int:
    """Return how many output channels a projection has."""
    weight = node.inputs[1]
    flag = node.attributes.get("transB")
    axis = 0 if node.op_type == "Gemm" and flag is not None and flag.as_int() else 1
    return 0 if weight is None or weight.const_value is None else int(weight.const_value.shape.numpy()[axis])


def walk_back(value: ir.Value | None) -> Path | str:
    """Return the path from a projection to a value, or why there is none, in words."""
    steps: list[_Step] = []
    rotation: Rotation | None = None
    for _ in range(MAX_STEPS):
        node = value.producer() if value is not None else None
        if value is None or node is None:
            return f"'{value.name if value is not None else ''}' is an input of the graph or a constant"
        if is_projection(node):
            return _path(node, steps, rotation)
        if node.op_type in (*MOVING, *PASSING):
            steps.append(_Step(node, value.index() or 0))
            value = node.inputs[0]
            continue
        turned = rotation_of(node)
        if turned is not None and rotation is not None:
            return f"{node.op_type} '{node.name}' rotates a second time"
        rotation = turned[1] if turned is not None else rotation
        behind = turned[0] if turned is not None else _linear_input(node)
        if behind is None:
            return f"{node.op_type} '{node.name}' lies between the projection and the attention"
        value = behind
    return "too many operators lie between the projection and the attention"


def _linear_input(node: ir.Node) -> ir.Value | None:
    """Return what a bias is added to, what one factor scales, or what is new beside a cache; None for others."""
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "Concat":
        made = [v for v in inputs if v.const_value is None and not _from_outside(v)]
        return made[0] if len(made) == 1 else None
    if node.op_type not in ("Add", "Mul", "Div") or len(inputs) != 2:
        return None
    for data, other in (inputs, inputs[::-1]):
        if node.op_type == "Add" and other.const_value is not None and data.const_value is None:
            return data
        if node.op_type in ("Mul", "Div") and is_scalar(other) and not is_scalar(data):
            return data if node.op_type == "Mul" or data is inputs[0] else None
    return None


def _from_outside(value: ir.Value) -> bool:
    """Return True for a graph input, also behind operators that only move it: a cache."""
    for _ in range(MAX_STEPS):
        node = value.producer()
        if node is None:
            return True
        if node.op_type not in (*MOVING, *PASSING) or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def is_scalar(value: ir.Value) -> bool:
    """Return True for a value that surely has one element."""
    if value.const_value is not None:
        return value.const_value.size == 1
    if value.shape is not None and all(d == 1 for d in value.shape):
        return True
    node = value.producer()
    if node is not None and node.op_type in ("Cast", "Sqrt", "Div", "Reciprocal"):  # of a computed size of heads
        return all(v is not None and is_scalar(v) for v in node.inputs)
    return len(partly_known(value) or ()) == 1


# -- rotary embeddings ---------------------------------------------------------------------------------


def rotation_of(node: ir.Node) -> tuple[ir.Value, Rotation] | None:
    """Return what a node rotates, and how; None if it is no rotary embedding of a known form."""
    if node.op_type == "RotaryEmbedding":
        return _fused_rotation(node)
    products = [v.producer() for v in node.inputs if v is not None]
    if node.op_type != "Add" or len(products) != 2:
        return None
    for plain, turned in (products, products[::-1]):
        if plain is None or turned is None or plain.op_type != "Mul" or turned.op_type != "Mul":
            continue
        for data, cos in _orders(plain):
            for half, sin in _orders(turned):
                if _turns(half, data):
                    return data, Rotation(cos.name or "", sin.name or "")
    return None


def _fused_rotation(node: ir.Node) -> tuple[ir.Value, Rotation] | None:
    """Return the same of the fused operator, of ONNX (23) or of com.microsoft."""
    order = (2, 3, 1) if node.domain == "com.microsoft" else (1, 2, 3)
    data = node.inputs[0]
    cos, sin, at = (node.inputs[i] if i < len(node.inputs) else None for i in order)
    partial = node.attributes.get("rotary_embedding_dim")
    if data is None or cos is None or sin is None or (partial is not None and partial.as_int()):
        return None
    flag = node.attributes.get("interleaved")
    interleaved = flag is not None and bool(flag.as_int())
    name = (at.name or "") if at is not None else ""
    return data, Rotation(cos.name or "", sin.name or "", name, interleaved, halved=True)


def _orders(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    first, second = node.inputs[0], node.inputs[1]
    return [] if first is None or second is None else [(first, second), (second, first)]


def _turns(half: ir.Value, data: ir.Value) -> bool:
    """Return True if one value is another with its halves swapped and the first one negated."""
    concat = half.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return False
    first, second = concat.inputs
    negated = first.producer() if first is not None else None
    if negated is None or negated.op_type != "Neg" or second is None or negated.inputs[0] is None:
        return False
    size = _last(data) or 2 * (_last(second) or 0)
    numbers = np.arange(size, dtype=np.int64)
    parts = [_part_of(v, data, numbers) for v in (negated.inputs[0], second)]
    return size > 0 and all(
        p is not None and np.array_equal(p, q)
        for p, q in zip(parts, (numbers[size // 2 :], numbers[: size // 2]), strict=True)
    )


def _last(value: ir.Value) -> int | None:
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def _part_of(value: ir.Value, data: ir.Value, numbers: Channels) -> Channels | None:
    """Return the numbers along the last axis that a Slice or Split of some data takes."""
    node = value.producer()
    if node is None or node.op_type not in ("Slice", "Split") or node.inputs[0] is not data:
        return None
    rank = len(data.shape) if data.shape is not None else 4
    found = _moved(_Step(node, value.index() or 0), numbers.reshape((1,) * (rank - 1) + (-1,)))
    return found.reshape(-1) if isinstance(found, np.ndarray) else None


# -- channel numbers on their way ----------------------------------------------------------------------


def _path(source: ir.Node, steps: Sequence[_Step], rotation: Rotation | None) -> Path | str:
    data = source.inputs[0]
    start = numbered(source.outputs[0], output_channels(source))
    if data is None or isinstance(start, str):
        return start if isinstance(start, str) else "it multiplies nothing"
    found = send(start, [(s.node, s.output) for s in reversed(steps)])
    return found if isinstance(found, str) else Path(source, found, rotation, data)


def numbered(value: ir.Value, count: int) -> Channels | str:
    """Return channel numbers in the shape of a value whose last axis has so many channels."""
    shape = [d if isinstance(d, int) else 1 for d in value.shape] if value.shape is not None else [1, 1, count]
    shape = [*shape[:-1], count]
    if int(np.prod(shape)) > MOST_NUMBERS:
        return f"the fixed shape of '{value.name}' is too large to be followed"
    return np.broadcast_to(np.arange(count, dtype=np.int64), shape)


def send(channels: Channels, steps: Sequence[tuple[ir.Node, int]]) -> Channels | str:
    """Return channel numbers behind moving operators (node, output), or which one cannot be followed."""
    for node, output in steps:
        moved = _moved(_Step(node, output), channels)
        if moved is None:
            return f"{node.op_type} '{node.name}' moves channels in a way that is not known"
        channels = moved
    return channels


def _moved(step: _Step, channels: Channels) -> Channels | None:
    if step.node.op_type in PASSING:
        return channels
    try:
        return _MOVES[step.node.op_type](step, channels)
    except (ValueError, IndexError, TypeError):  # shapes that do not fit: what was assumed of them is wrong
        return None


def _constant(node: ir.Node, index: int) -> NDArray[np.int64] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    array = constant_of(value)
    return None if array is None else np.asarray(array, np.int64)


def _integers(node: ir.Node, index: int) -> NDArray[np.int64] | None:
    return whole(node.inputs[index]) if index < len(node.inputs) else None


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return tuple(attribute.as_ints())
    given = _integers(node, 1)
    return None if given is None else tuple(int(a) for a in given.reshape(-1))


def _axis(node: ir.Node, default: int) -> int:
    attribute = node.attributes.get("axis")
    return attribute.as_int() if attribute is not None else default


def _transpose(step: _Step, channels: Channels) -> Channels | None:
    perm = step.node.attributes.get("perm")
    return channels.transpose(perm.as_ints() if perm is not None else None)


def _squeeze(step: _Step, channels: Channels) -> Channels | None:
    axes = _axes(step.node)
    return channels.squeeze(axes) if axes is not None else None


def _unsqueeze(step: _Step, channels: Channels) -> Channels | None:
    axes = _axes(step.node)
    return np.expand_dims(channels, axes) if axes is not None else None


def _flatten(step: _Step, channels: Channels) -> Channels | None:
    axis = _axis(step.node, 1) % (channels.ndim + 1)
    return channels.reshape(int(np.prod(channels.shape[:axis])), -1)


def _split(step: _Step, channels: Channels) -> Channels | None:
    axis, outputs = _axis(step.node, 0), len(step.node.outputs)
    sizes, attribute = _integers(step.node, 1), step.node.attributes.get("split")
    if attribute is not None:
        sizes = np.asarray(attribute.as_ints(), np.int64)
    if sizes is None:
        return np.split(channels, outputs, axis)[step.output]
    return np.split(channels, np.cumsum(sizes)[:-1], axis)[step.output]


def _slice(step: _Step, channels: Channels) -> Channels | None:
    starts, ends, axes, strides = (_integers(step.node, i) for i in (1, 2, 3, 4))
    if starts is None or ends is None or (axes is None and len(step.node.inputs) > 3 and step.node.inputs[3]):
        return None
    where = range(len(starts)) if axes is None else [int(a) for a in axes]
    by = np.ones_like(starts) if strides is None else strides
    for first, last, axis, stride in zip(starts, ends, where, by, strict=True):
        chosen = [slice(None)] * channels.ndim
        stop = None if stride < 0 and last < -channels.shape[axis] else int(last)
        chosen[axis] = slice(int(first), stop, int(stride))
        channels = channels[tuple(chosen)]
    return channels if channels.size else None


def _gather(step: _Step, channels: Channels) -> Channels | None:
    number = _constant(step.node, 1)
    return None if number is None else np.take(channels, number, axis=_axis(step.node, 0))


def _expand(step: _Step, channels: Channels) -> Channels | None:
    target = partly_known(step.node.inputs[1])
    if target is None:
        return None
    shape = [1 if size is None or size == -1 else size for size in target]
    return np.broadcast_to(channels, np.broadcast_shapes(channels.shape, shape))


def _reshape(step: _Step, channels: Channels) -> Channels | None:
    output = step.node.outputs[0]
    fixed = [d if isinstance(d, int) else None for d in output.shape] if output.shape is not None else None
    target = partly_known(step.node.inputs[1])
    target = fixed if target is None else target
    if target is None:
        return None
    sizes: list[int | None] = []
    for axis, size in enumerate(target):
        known = fixed[axis] if size is None and fixed is not None and len(fixed) == len(target) else size
        sizes.append(channels.shape[axis] if known == 0 else known)
    product = int(np.prod([s for s in sizes if s is not None and s != -1]))
    if -1 not in sizes and sizes.count(None) == 1 and product != channels.size:
        return channels.reshape([-1 if s is None else s for s in sizes])
    # What a graph computes for batch and length is mostly what they were.
    kept = [channels.shape[a] if s is None and a < channels.ndim else s for a, s in enumerate(sizes)]
    if None not in kept and -1 not in kept and int(np.prod([s or 1 for s in kept])) == channels.size:
        return channels.reshape([s or 1 for s in kept])
    return channels.reshape([1 if s is None else s for s in sizes])


_MOVES = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
}
