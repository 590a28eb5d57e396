"""What attention consists of: projections by head, and the blocks they make up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.attention_paths import MAX_STEPS, MOVING, PASSING, Channels, Path, Rotation, is_projection, send
from qcompiler.model.edit import constant_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """The rows of one weight that make the queries, keys or values, or the columns that read what attention gives.

    Attributes:
        node: the product with the weight, or the fused operator that holds it.
        weight: its name.
        rows: int64, shape (heads, size): output channels of the weight by head and dimension; of the output
            projection, input channels. Heads that several query heads share stand there once.
        head_of: int64, shape (query heads,): which of these heads a query head uses.
        rotation: a rotary embedding behind it, or None.
        data: name of what the weight is multiplied with.
        factors: float, shape (inputs,): what the input channels of the output projection are multiplied with before
            it, such as to smooth them; None where nothing is.
    """

    node: ir.Node
    weight: str
    rows: Channels
    head_of: Channels
    rotation: Rotation | None
    data: str
    factors: NDArray[np.floating] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionBlock:
    """One attention: softmax(scale Q K^T + mask) V W_O.

    Attributes:
        name: of the Softmax or fused node.
        form: operator that it was recognized by, with its domain if that is not ONNX's own.
        node: the product of probabilities and values, or the fused operator.
        heads / head_size: of the queries; 0 where they are not known.
        scale: what logits are multiplied with behind the product; None where the graph computes it.
        cross: keys come from another value than queries.
        query / key / value / output: the projections, or why there is none, in words.
        operands: names of the values whose products attention is: query and key as they are multiplied, and the
            probabilities; of a fused operator the inputs query, key and value.
    """

    name: str
    form: str
    node: ir.Node
    heads: int
    head_size: int
    scale: float | None
    cross: bool
    query: Projection | str
    key: Projection | str
    value: Projection | str
    output: Projection | str
    operands: tuple[str, str, str]

    @property
    def projections(self) -> dict[str, Projection | str]:
        """The four by role."""
        return {"query": self.query, "key": self.key, "value": self.value, "output": self.output}

    @property
    def matched(self) -> bool:
        """True if all four projections were found."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why projections are missing."""
        return tuple(f"{role}: {p}" for role, p in self.projections.items() if isinstance(p, str))


@dataclass(frozen=True, slots=True)
class NoAttention:
    """A Softmax or fused operator that looks like attention and is not understood."""

    name: str
    reason: str


def name_of(value: ir.Value | None) -> str:
    """Return a value's name, "" for none."""
    return (value.name or "") if value is not None else ""


def heads_of(channels: Channels) -> Channels | str:
    """Return channels by head and dimension from (batch, heads, length, size), or (batch * heads, length, size)."""
    if channels.ndim < 3:
        return "the operand has no axis of heads"
    if not (channels == channels[..., :1, :]).all():
        return "other positions have other channels"
    rows = channels[..., 0, :].reshape(-1, channels.shape[-1])
    batch = channels.shape[0] if channels.ndim > 3 else 1
    once = rows[: len(rows) // batch]
    return once if np.array_equal(rows, np.tile(once, (batch, 1))) else "samples have different channels"


def projection(path: Path | str, table: Channels | str, heads: int) -> Projection | str:
    """Return the projection of a path whose channels by head are known; heads that repeat are shared ones."""
    if isinstance(path, str) or isinstance(table, str):
        return path if isinstance(path, str) else str(table)
    first = {tuple(row): number for number, row in reversed(list(enumerate(table.tolist())))}
    unique = sorted(first.values())
    rows = table[unique]
    if np.unique(rows).size != rows.size:
        return "heads share some of their channels"
    if not heads or heads % len(table):
        return f"{len(table)} of its heads are not shared evenly by {heads} heads of queries"
    head_of = np.asarray([unique.index(first[tuple(row)]) for row in table.tolist()], np.int64)
    return Projection(
        node=path.source,
        weight=name_of(path.source.inputs[1]),
        rows=np.ascontiguousarray(rows),
        head_of=np.repeat(head_of, heads // len(table)),
        rotation=path.rotation,
        data=name_of(path.data),
    )


def output_projection(context: ir.Value, channels: Channels, heads: int, size: int) -> Projection | str:
    """Return the product that reads a value with head channels in it, numbered by head and dimension."""
    steps: list[tuple[ir.Node, int]] = []
    value, factors = context, None
    for _ in range(MAX_STEPS):
        uses = [use for use in value.uses() if use.node.op_type != "Shape"]
        if len(uses) != 1 or value.is_graph_output():
            return f"'{value.name}' is read by more than a projection"
        node = uses[0].node
        if is_projection(node):
            break
        by_channel = _channel_factors(node, heads * size)
        if by_channel is not None and is_projection(_only_reader(node)):
            value, factors = node.outputs[0], by_channel
            continue
        if uses[0].idx != 0 or node.op_type not in (*MOVING, *PASSING):
            return f"{node.op_type} '{node.name}' lies between the attention and the projection"
        steps.append((node, 0))
        value = node.outputs[0]
    else:
        return "too many operators lie between the attention and the projection"
    found = send(channels, steps)
    if isinstance(found, str):
        return found
    order = found.reshape(-1, found.shape[-1])[0]
    if order.size != heads * size or np.unique(order).size != order.size:
        return "the projection does not read every channel of every head once"
    return Projection(
        node=node,
        weight=name_of(node.inputs[1]),
        rows=np.argsort(order).reshape(heads, size),
        head_of=np.arange(heads, dtype=np.int64),
        rotation=None,
        data=name_of(value),
        factors=factors,
    )


def _channel_factors(node: ir.Node, channels: int) -> NDArray[np.floating] | None:
    """Return the constant by which a Mul multiplies every channel of the last axis, None for any other node."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return None
    constants = [array for value in node.inputs if (array := constant_of(value)) is not None]
    fits = len(constants) == 1 and constants[0].size == channels and constants[0].shape[-1:] == (channels,)
    return np.asarray(constants[0], np.float64).reshape(-1) if fits else None


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 else None


def uses_of(blocks: Sequence[AttentionBlock]) -> Iterator[tuple[AttentionBlock, str, Projection]]:
    """Yield every projection that was found, with its block and role."""
    for block in blocks:
        for role, found in block.projections.items():
            if isinstance(found, Projection):
                yield block, role, found
