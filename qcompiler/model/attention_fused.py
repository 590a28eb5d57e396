"""Attention that is one operator: of ONNX (opset 23 and later), or of com.microsoft."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompiler.model.attention_parts import AttentionBlock, Projection, heads_of, output_projection, projection
from qcompiler.model.attention_paths import Channels, Path, Rotation, numbered, walk_back

FUSED = {
    ("", "Attention"),
    ("com.microsoft", "Attention"),
    ("com.microsoft", "MultiHeadAttention"),
    ("com.microsoft", "GroupQueryAttention"),
}
"""Domain and operator."""

INSIDE = "its weights lie inside the fused operator, which reads them in float"
PACKED_RANK = 5


def is_fused(node: ir.Node) -> bool:
    """Return True for an operator that is attention as a whole."""
    return (_domain(node), node.op_type) in FUSED


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def fused_attention(node: ir.Node) -> AttentionBlock | str:
    """Return the attention that a fused operator is, or why it is not understood."""
    if node.op_type == "Attention" and _domain(node):
        return _with_weights(node)
    heads = _integer(node, "num_heads") or _integer(node, "q_num_heads")
    shared = _integer(node, "kv_num_heads") or heads
    inputs = [_input(node, i) for i in range(3)]
    paths = [walk_back(v) if v is not None else "it is packed with the query" for v in inputs]
    if inputs[1] is None or inputs[2] is None:
        tables = _unpacked(node, paths, heads, shared)
        paths = [paths[0] if inputs[i] is None else paths[i] for i in range(3)]
        if inputs[1] is not None:  # keys and values packed in the input of the keys
            paths = [paths[0], paths[1], paths[1]]
    else:
        counts = (heads, shared, shared)
        tables = [_table(path, count) for path, count in zip(paths, counts, strict=True)]
    heads = heads or next((len(t) for t in tables if not isinstance(t, str)), 0)
    found = [projection(p, t, heads) for p, t in zip(paths, tables, strict=True)]
    return _assembled(node, paths, found, heads)


def _assembled(node: ir.Node, paths: list[Path | str], found: list[Projection | str], heads: int) -> AttentionBlock:
    query, key, value = found
    inside = _inside_rotation(node)
    if isinstance(inside, Rotation):
        query, key = (p if isinstance(p, str) else replace(p, rotation=inside) for p in (query, key))
    elif inside:
        query, key = (p if isinstance(p, str) else inside for p in (query, key))
    first, second = paths[0], paths[1]
    scale = node.attributes.get("scale")
    size = query.rows.shape[1] if isinstance(query, Projection) else 0
    given = scale.as_float() if scale is not None and scale.as_float() else None
    return AttentionBlock(
        name=node.name or "",
        form=".".join(filter(None, (_domain(node), node.op_type))),
        node=node,
        heads=heads,
        head_size=size,
        scale=given if given is not None else (size**-0.5 if size else None),
        cross=not isinstance(first, str) and not isinstance(second, str) and first.data is not second.data,
        query=query,
        key=key,
        value=value,
        output=_output(node, value, heads),
        operands=(_named(node, 0), _named(node, 1), _named(node, 2)),
    )


def _table(path: Path | str, heads: int) -> Channels | str:
    """Return channels by head of an input of shape (batch, length, heads * size) or (batch, heads, length, size)."""
    if isinstance(path, str):
        return path
    if path.channels.ndim != 3:
        return heads_of(path.channels)
    return _by_head(path.channels.reshape(-1, path.channels.shape[-1])[0], heads)


def _by_head(channels: Channels, heads: int) -> Channels | str:
    if not heads or channels.size % heads:
        return f"{channels.size} channels are not divided by {heads} heads"
    return channels.reshape(heads, -1)


def _unpacked(node: ir.Node, paths: list[Path | str], heads: int, shared: int) -> list[Channels | str]:
    """Return channels by head of queries, keys and values that share an input."""
    path = paths[0]
    if isinstance(path, str):
        return [path, path, path]
    if _input(node, 1) is not None:
        second = paths[1]
        packed = second if isinstance(second, str) else _packed_axis(second.channels, 2)
        return [_table(path, heads), *([packed] * 2 if isinstance(packed, str) else packed)]
    if path.channels.ndim == PACKED_RANK:
        found = _packed_axis(path.channels, 3)
        return [found] * 3 if isinstance(found, str) else found
    flat = path.channels.reshape(-1, path.channels.shape[-1])[0]
    size = flat.size // (heads + 2 * shared) if heads else 0
    if not size or flat.size % (heads + 2 * shared):
        return [f"{flat.size} channels are not divided by {heads} + 2 x {shared} heads"] * 3
    cuts = np.split(flat, [heads * size, (heads + shared) * size])
    return [c.reshape(-1, size) for c in cuts]


def _packed_axis(channels: Channels, count: int) -> list[Channels | str] | str:
    """Return channels by head from shape (batch, length, heads, count, size)."""
    if channels.ndim != PACKED_RANK or channels.shape[3] != count:
        return "its input packs projections in a way that is not known"
    return [np.ascontiguousarray(channels[0, 0, :, i]) for i in range(count)]


def _inside_rotation(node: ir.Node) -> Rotation | str:
    """Return the rotary embedding that the operator itself applies, "" for none, or why it is not known."""
    if not _integer(node, "do_rotary"):
        return ""
    cos, sin = _named(node, 7), _named(node, 8)
    if not cos or not sin:
        return "the operator rotates by angles of its own"
    return Rotation(cos, sin, interleaved=bool(_integer(node, "rotary_interleaved")), halved=True)


def _output(node: ir.Node, value: Projection | str, heads: int) -> Projection | str:
    if isinstance(value, str):
        return "the heads of the values are not known"
    size = value.rows.shape[1]
    context = node.outputs[0]
    query = node.inputs[0]
    numbers = np.arange(heads * size, dtype=np.int64)
    if query is not None and query.shape is not None and len(query.shape) == 4:
        return output_projection(context, numbers.reshape(1, heads, 1, size), heads, size)
    channels = numbered(context, heads * size)
    return channels if isinstance(channels, str) else output_projection(context, channels, heads, size)


def _with_weights(node: ir.Node) -> AttentionBlock | str:
    """Return the attention of com.microsoft.Attention, whose packed projection is one of its inputs."""
    weight, data = _input(node, 1), _input(node, 0)
    if weight is None or data is None or weight.const_value is None:
        return "its projection is no constant"
    heads, width = _integer(node, "num_heads"), int(weight.const_value.shape.numpy()[1])
    sizes = node.attributes.get("qkv_hidden_sizes")
    widths = list(sizes.as_ints()) if sizes is not None else [width // 3] * 3
    if not heads or sum(widths) != width or any(w % heads for w in widths):
        return f"{width} channels are not queries, keys and values of {heads} heads"
    parts = np.split(np.arange(width, dtype=np.int64), np.cumsum(widths)[:-1])
    rotation = "the operator rotates by angles of its own" if _integer(node, "do_rotary") else None
    found: list[Projection | str] = [
        rotation
        if rotation is not None and role < 2
        else Projection(
            node=node,
            weight=weight.name or "",
            rows=part.reshape(heads, -1),
            head_of=np.arange(heads, dtype=np.int64),
            rotation=None,
            data=data.name or "",
        )
        for role, part in enumerate(parts)
    ]
    path = Path(node, parts[0], None, data)
    return _assembled(node, [path, path, path], found, heads)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _named(node: ir.Node, index: int) -> str:
    value = _input(node, index)
    return (value.name or "") if value is not None else ""


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0
