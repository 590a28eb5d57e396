"""Attention in exported graphs: which rows of which weights are the queries, keys and values of which head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompiler.model.attention_fused import fused_attention, is_fused
from qcompiler.model.attention_parts import (
    AttentionBlock,
    NoAttention,
    Projection,
    heads_of,
    name_of,
    output_projection,
    projection,
)
from qcompiler.model.attention_paths import MAX_STEPS, PASSING, Channels, Path, is_scalar, walk_back
from qcompiler.model.edit import constant_of

DECOMPOSED = "Softmax"


def find_attention(model: ir.Model) -> tuple[tuple[AttentionBlock, ...], tuple[NoAttention, ...]]:
    """Return the attention of a model's main graph in order, and what looks like it but is none that is known.

    A Softmax without a product on either side, such as a classifier's, is no attention at all.
    """
    blocks, missed = [], []
    for node in model.graph:
        found: AttentionBlock | str | None = None
        if is_fused(node):
            found = fused_attention(node)
        elif node.op_type == "Softmax":
            found = _around(node)
        if isinstance(found, AttentionBlock):
            blocks.append(found)
        elif found is not None:
            missed.append(NoAttention(node.name or "", found))
    return tuple(blocks), tuple(missed)


# -- attention out of single operators -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    product: ir.Node
    scale: float | None


def _around(softmax: ir.Node) -> AttentionBlock | str | None:
    """Return the attention around a Softmax, why it is none that is known, or None where nothing looks like it."""
    scores, mixing = _scores(softmax.inputs[0]), _mixing(softmax.outputs[0])
    if scores is None and mixing is None:
        return None
    if scores is None:
        return "what it normalizes is no product of queries and keys with a factor and a mask"
    if mixing is None:
        return "its probabilities are multiplied with no values"
    rank = len(softmax.outputs[0].shape) if softmax.outputs[0].shape is not None else 0
    axis = softmax.attributes.get("axis")
    if axis is not None and axis.as_int() not in (-1, rank - 1):
        return f"it normalizes axis {axis.as_int()}, not the last one"
    paths = (
        walk_back(scores.product.inputs[0]),
        walk_back(scores.product.inputs[1]),
        walk_back(mixing.inputs[1]),
    )
    return _block(softmax, scores, mixing, paths)


def _block(
    softmax: ir.Node, scores: _Scores, mixing: ir.Node, paths: tuple[Path | str, Path | str, Path | str]
) -> AttentionBlock:
    query, key, _ = paths
    tables = [_heads(path, swapped=number == 1) for number, path in enumerate(paths)]
    heads = max((len(t) for t in tables if not isinstance(t, str)), default=0)
    found = [projection(path, table, heads) for path, table in zip(paths, tables, strict=True)]
    operands = (scores.product.inputs[0], scores.product.inputs[1], mixing.inputs[0])
    size = tables[0].shape[1] if not isinstance(tables[0], str) else 0
    return AttentionBlock(
        name=softmax.name or "",
        form=DECOMPOSED,
        node=mixing,
        heads=heads,
        head_size=size or (tables[1].shape[1] if not isinstance(tables[1], str) else 0),
        scale=scores.scale,
        cross=_cross(query, key),
        query=found[0],
        key=found[1],
        value=found[2],
        output=_output(mixing.outputs[0], found[2]),
        operands=(name_of(operands[0]), name_of(operands[1]), name_of(operands[2])),
    )


def _cross(query: Path | str, key: Path | str) -> bool:
    if isinstance(query, str) or isinstance(key, str):
        return isinstance(key, str) and not isinstance(query, str) and "input of the graph" in key
    return query.data is not key.data


def _scores(value: ir.Value | None, depth: int = 0) -> _Scores | None:
    """Return the product of two computed values behind masks and factors, and the factor; None if there is none."""
    node = value.producer() if value is not None else None
    if node is None or depth > MAX_STEPS:
        return None
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "MatMul":
        computed = len(inputs) == 2 and all(v.const_value is None for v in inputs)
        return _Scores(node, 1.0) if computed else None
    if node.op_type in (*PASSING, "Reshape"):  # exporters fold batch and heads for the mask
        return _scores(inputs[0], depth + 1)
    if node.op_type in ("Add", "Where"):
        branches = (_scores(v, depth + 1) for v in inputs[-2:])
        return next((b for b in branches if b is not None), None)
    if node.op_type in ("Mul", "Div") and len(inputs) == 2:
        for data, factor in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
            found = _scores(data, depth + 1) if is_scalar(factor) else None
            if found is not None and (node.op_type == "Mul" or data is inputs[0]):
                return _Scores(found.product, _times(found.scale, node.op_type, factor))
    return None


def _times(scale: float | None, op_type: str, factor: ir.Value) -> float | None:
    array = constant_of(factor)
    if scale is None or array is None:
        return None
    number = float(np.asarray(array).reshape(-1)[0])
    return scale * number if op_type == "Mul" else scale / number


def _mixing(value: ir.Value) -> ir.Node | None:
    """Return the product that probabilities go into, behind operators that leave them what they are."""
    waiting = [value]
    for _ in range(MAX_STEPS):
        if not waiting:
            break
        here = waiting.pop(0)
        for use in here.uses():
            node = use.node
            if node.op_type == "MatMul" and use.idx == 0 and _computed(node.inputs[1]):
                return node
            if node.op_type in (*PASSING, "Where", "Reshape"):
                waiting.append(node.outputs[0])
    return None


def _computed(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is None


def _heads(path: Path | str, *, swapped: bool) -> Channels | str:
    """Return channels of shape (heads, size) from an operand of shape (..., length, size), or (..., size, length)."""
    if isinstance(path, str):
        return path
    return heads_of(np.swapaxes(path.channels, -1, -2) if swapped else path.channels)


# -- the output projection -----------------------------------------------------------------------------


def _output(context: ir.Value, value: Projection | str) -> Projection | str:
    """Return the product that reads the heads' outputs, of shape (batch, heads, length, size)."""
    if isinstance(value, str):
        return "the heads of the values are not known"
    heads, size = len(value.head_of), value.rows.shape[1]
    shape = (
        [d if isinstance(d, int) else 1 for d in context.shape] if context.shape is not None else [1, heads, 1, size]
    )
    shape[-1] = size
    if len(shape) == 3:
        shape[0] = max(shape[0], heads)
    elif len(shape) > 3:
        shape[-3] = heads
    numbers = np.arange(heads * size, dtype=np.int64).reshape(heads, 1, size)
    lead = numbers if len(shape) > 3 else np.tile(numbers, (shape[0] // heads, 1, 1))
    return output_projection(context, np.broadcast_to(lead, shape), heads, size)
