"""Which sublayer of a Transformer a weight belongs to: attention, feed-forward, embedding, of encoder or decoder."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qcompiler.model.attention import find_attention
from qcompiler.model.attention_parts import AttentionBlock, Projection
from qcompiler.model.attention_paths import is_projection
from qcompiler.model.edit import values_by_name

SELF, CROSS, FEED_FORWARD, EMBEDDING, OTHER = (
    *("self-attention", "cross-attention"),
    *("feed-forward", "embedding", "other"),
)
KINDS = (EMBEDDING, SELF, CROSS, FEED_FORWARD, OTHER)
"""In the order of tables."""
ENCODER, DECODER = "encoder", "decoder"

_POINTWISE = frozenset(
    ("Relu", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Erf", "Tanh", "Sigmoid", "Silu", "HardSwish", "Softplus")
)
_PASSING = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Cast", "Clip", "Identity", "Reshape"))


def sublayers(model: ir.Model) -> dict[str, str]:
    """Return the sublayer of every weight of a product or a table of the main graph, such as "decoder feed-forward".

    Attention is what ``find_attention`` finds. Feed-forward are two products with a pointwise function between them.
    A table that is looked up is an embedding, also where the output is multiplied by it. Where some attention is
    across sequences, what its keys are computed from is the encoder, and everything else the decoder; without any
    there is no such word. Without attention nothing is found.

    Args:
        model: a float model in normal form.
    """
    blocks, _ = find_attention(model)
    if not blocks:
        return {}
    kinds: dict[str, str] = {}
    users: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        weight = node.inputs[1] if is_projection(node) else node.inputs[0] if node.op_type == "Gather" else None
        name = weight.name or "" if weight is not None and weight.const_value is not None else ""
        if not name or weight is None or len(weight.const_value.shape if weight.const_value is not None else ()) != 2:
            continue
        users.setdefault(name, []).append(node)
        if node.op_type == "Gather":
            kinds[name] = EMBEDDING
        else:
            kinds.setdefault(name, OTHER)
    for name, kind in (*_feed_forward(model), *_attention(blocks)):
        if kinds.get(name) == OTHER:
            kinds[name] = kind
    encoder = _encoder(model, blocks)
    if encoder is None:
        return kinds
    return {name: f"{_part(users[name], encoder)} {kind}" for name, kind in kinds.items()}


def _part(users: Iterable[ir.Node], encoder: set[ir.Node]) -> str:
    return ENCODER if all(node in encoder for node in users) else DECODER


def _attention(blocks: Iterable[AttentionBlock]) -> list[tuple[str, str]]:
    return [
        (p.weight, CROSS if block.cross else SELF)
        for block in blocks
        for p in block.projections.values()
        if isinstance(p, Projection)
    ]


def _feed_forward(model: ir.Model) -> list[tuple[str, str]]:
    """Return the weights of two products with nothing but pointwise operators between them, one of them a function."""
    found = []
    for node in model.graph:
        if is_projection(node) and node.inputs[1] is not None:
            for behind in _behind(node.outputs[0]):
                weight = behind.inputs[1]
                if weight is not None:
                    found += [(v.name or "", FEED_FORWARD) for v in (node.inputs[1], weight)]
    return found


def _behind(value: ir.Value) -> list[ir.Node]:
    """Return the products that read a value through a pointwise function."""
    found, seen = [], set[tuple[ir.Value, bool]]()
    waiting = [(value, False)]
    while waiting:
        here, curved = waiting.pop()
        if (here, curved) in seen:
            continue
        seen.add((here, curved))
        for use in here.uses():
            node = use.node
            if is_projection(node) and use.idx == 0 and curved:
                found.append(node)
            elif node.op_type in _POINTWISE or node.op_type in _PASSING:
                waiting.append((node.outputs[0], curved or node.op_type in _POINTWISE))
    return found


def _encoder(model: ir.Model, blocks: Iterable[AttentionBlock]) -> set[ir.Node] | None:
    """Return the nodes that the keys of attention across sequences come from; None where there is none."""
    crossing = [block for block in blocks if block.cross]
    if not crossing:
        return None
    named = values_by_name(model)
    waiting = [named.get(block.key.data) for block in crossing if isinstance(block.key, Projection)]
    found: set[ir.Node] = set()
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in found:
            found.add(node)
            waiting += node.inputs
    return found
