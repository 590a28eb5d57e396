"""What attention makes of errors in its projections, from runs over samples: row Hessians and weighted inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.model.attention_parts import AttentionBlock, Projection
from qcompiler.model.attention_paths import Rotation, output_channels
from qcompiler.model.edit import constant_of, values_by_name
from qcompiler.quant.heads import HeadAccumulator, rotated_back, rotation_matrices
from qcompiler.runtime.capture import stream
from qcompiler.runtime.fused_probe import FusedProbe
from qcompiler.runtime.grams import GramOptions

ROTATIONS = 64
"""Positions, spread evenly over a sample, over which a rotary embedding is averaged."""

Float64 = NDArray[np.float64]
Floating = NDArray[np.floating]
Captured = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMoments:
    """Statistics of one attention; None where they could not be made.

    Attributes:
        keys: float64, shape (query heads, size, size): second moment of the keys that each head of queries meets,
            with rotary embeddings of the queries taken out: the row Hessian of the queries.
        queries: float64, shape (key heads, size, size): the same for the keys.
        inputs: float64, shape (value heads, inputs, inputs): second moment of A X, the inputs of the values as
            attention weighs them.
        means: float64, shape (value heads, inputs): mean of A X.
        reason: why something is missing, else "".
    """

    keys: Float64 | None
    queries: Float64 | None
    inputs: Float64 | None
    means: Float64 | None
    reason: str = ""


def capture_attention(
    model: ir.Model, blocks: Sequence[AttentionBlock], samples: Dataset, options: GramOptions
) -> dict[str, AttentionMoments]:
    """Return the statistics of attention blocks by name.

    Keys that no query attends to (padding) do not count. Batches are expected first, or behind the length where only
    that fits.

    Args:
        model: runs over the samples.
        blocks: of its main graph.
        samples: at least one.
        options: limits; ``positions`` are queries per block over all samples.

    Raises:
        DataError: the model does not run on a sample.
    """
    limit = max(options.positions // max(len(samples), 1), 1)
    found: dict[str, AttentionMoments] = {}
    constants = {n: a for n, v in values_by_name(model).items() if (a := _constant(v)) is not None}
    batches = list(_batches(blocks, options.batch_bytes))
    for number, batch in enumerate(batches):
        sums = [_BlockSums(block, constants, limit, options) for block in batch]
        values = [v for s in sums for v in s.wanted if v not in constants]
        for index, captured in enumerate(stream(model, list(dict.fromkeys(values)), samples, threads=options.threads)):
            for block_sums in sums:
                block_sums.add(captured, index)
            if options.progress is not None:
                options.progress(number * len(samples) + index + 1, len(batches) * len(samples))
        found.update({s.name: s.result() for s in sums})
    return found


def _constant(value: ir.Value) -> NDArray[np.generic] | None:
    """Return a small constant, such as a table of angles."""
    tensor = value.const_value
    return constant_of(value) if tensor is not None and tensor.size <= 1 << 24 else None


def _value_bytes(block: AttentionBlock) -> int:
    value = block.value
    if isinstance(value, str):
        return 0
    weight = value.node.inputs[1]
    size = int(weight.const_value.size) if weight is not None and weight.const_value is not None else 0
    width = size // max(output_channels(value.node), 1)
    return len(value.rows) * width**2 * 8


def _batches(blocks: Sequence[AttentionBlock], limit: int) -> Iterator[list[AttentionBlock]]:
    """Yield blocks in order, as many at a time as fit."""
    batch: list[AttentionBlock] = []
    used = 0
    for block in blocks:
        size = _value_bytes(block)
        if batch and used + size > limit:
            yield batch
            batch, used = [], 0
        batch.append(block)
        used += size
    if batch:
        yield batch


class _BlockSums:
    """The sums of one block over samples."""

    def __init__(self, block: AttentionBlock, constants: Captured, limit: int, options: GramOptions) -> None:
        self.name, self._block, self._constants = block.name, block, constants
        self._limit, self._seed, self._reason = limit, options.seed, ""
        self._keys: HeadAccumulator | None = None
        self._queries: HeadAccumulator | None = None
        self._inputs: HeadAccumulator | None = None
        self._means: Float64 | None = None
        self._fused = FusedProbe(block, constants) if block.form != "Softmax" else None
        if _value_bytes(block) > options.batch_bytes:
            self._reason = f"moments of its values by head take more than {options.batch_bytes:,} bytes"

    @property
    def wanted(self) -> list[str]:
        """Names of the values that are needed."""
        block = self._block
        names = list(self._fused.wanted if self._fused is not None else block.operands)
        for found in (block.query, block.key):
            if isinstance(found, Projection) and found.rotation is not None:
                names += [found.rotation.cos, found.rotation.sin, found.rotation.positions]
        if isinstance(block.value, Projection):
            names.append(block.value.data)
        return [n for n in names if n]

    def add(self, captured: Captured, index: int) -> None:
        """Add one sample."""
        if self._fused is not None:
            found = self._fused.operands(captured)
            if isinstance(found, str):
                self._reason = found
                return
            queries, keys, weights = found
        else:
            queries, keys, weights = self._operands(captured)
        block = self._block
        heads = block.heads
        seen = weights.max(axis=(1, 2)) > 0
        if isinstance(block.query, Projection):
            every = keys if keys.shape[1] == heads else keys[:, _shared(block, keys.shape[1])]
            moment = _moment(every * seen[:, None, :, None])
            self._keys = self._keys or HeadAccumulator(heads, moment.shape[1])
            self._keys.add_moment(self._back(moment, block.query.rotation, captured), int(seen.sum()))
        if isinstance(block.key, Projection):
            moment = _averaged(_moment(queries), block.key.head_of, len(block.key.rows))
            self._queries = self._queries or HeadAccumulator(*moment.shape[:2])
            count = queries.shape[0] * queries.shape[2]
            self._queries.add_moment(self._back(moment, block.key.rotation, captured), count)
        if isinstance(block.value, Projection) and not self._reason:
            self._add_inputs(block.value, weights, np.asarray(captured[block.value.data]), index)

    def _operands(self, captured: Captured) -> tuple[Floating, Floating, Floating]:
        """Return queries and keys (batch, heads, length, size) and probabilities (batch, heads, queries, keys)."""
        query, key, weights = (np.asarray(captured[n], np.float32) for n in self._block.operands)
        heads = self._block.heads
        key = np.swapaxes(key, -1, -2)
        if key.ndim == 3:
            key = key.reshape(-1, heads, *key.shape[-2:])
        return (query.reshape(-1, heads, *query.shape[-2:]), key, weights.reshape(-1, heads, *weights.shape[-2:]))

    def _back(self, moment: Float64, rotation: Rotation | None, captured: Captured) -> Float64:
        """Return a sum of moments with a rotary embedding taken out."""
        if rotation is None:
            return moment
        tables = [np.asarray(self._value(n, captured)) for n in (rotation.cos, rotation.sin)]
        cos, sin = (t.reshape(-1, t.shape[-1]) for t in tables)
        positions = self._value(rotation.positions, captured) if rotation.positions else None
        if positions is not None:
            rows = np.asarray(positions, np.int64).reshape(-1)
            cos, sin = cos[rows], sin[rows]
        elif self._fused is not None:
            length = self._fused.length(captured)
            cos, sin = cos[:length], sin[:length]
        every = slice(None, None, -(-len(cos) // ROTATIONS))
        turns = rotation_matrices(
            cos[every], sin[every], moment.shape[1], interleaved=rotation.interleaved, halved=rotation.halved
        )
        return rotated_back(moment, turns)

    def _value(self, name: str, captured: Captured) -> NDArray[np.generic]:
        return self._constants[name] if name in self._constants else captured[name]

    def _add_inputs(self, value: Projection, weights: Floating, data: Floating, index: int) -> None:
        batch, heads, queries, keys = weights.shape
        inputs = _by_sample(data, batch, keys)
        if inputs is None:
            self._reason = "its values come from a cache too, not from its inputs alone"
            return
        if self._inputs is None or self._means is None:
            self._inputs = HeadAccumulator(len(value.rows), inputs.shape[-1])
            self._means = np.zeros((len(value.rows), inputs.shape[-1]))
        rows = min(queries, max(self._limit // batch, 1))
        drawn = np.random.default_rng([self._seed, index]).choice(queries, rows, replace=False)
        chosen = weights[:, :, np.sort(drawn)].astype(np.float64)
        for head in range(heads):
            mixed = (chosen[:, head] @ inputs).reshape(-1, inputs.shape[-1])
            self._inputs.add_head(int(value.head_of[head]), mixed)
            self._means[value.head_of[head]] += mixed.sum(0)
        self._inputs.counted(batch * rows * heads // len(value.rows))

    def result(self) -> AttentionMoments:
        """Return the means over all samples."""
        keys, queries, inputs = (
            s.result() if s is not None else None for s in (self._keys, self._queries, self._inputs)
        )
        if self._reason:
            inputs = None
        means = self._means / max(self._inputs.count, 1) if self._means is not None and self._inputs else None
        return AttentionMoments(keys, queries, inputs, means, self._reason)


def _shared(block: AttentionBlock, count: int) -> NDArray[np.int64]:
    """Return which head of the keys each head of the queries meets."""
    if isinstance(block.key, Projection):
        return block.key.head_of
    return np.repeat(np.arange(count), block.heads // count)


def _moment(vectors: Floating) -> Float64:
    """Return the sum of x x^T per head over (batch, heads, length, size)."""
    exact = np.moveaxis(vectors, 1, 0).reshape(vectors.shape[1], -1, vectors.shape[-1]).astype(np.float64)
    return np.asarray(exact.transpose(0, 2, 1) @ exact)


def _averaged(moment: Float64, head_of: NDArray[np.int64], heads: int) -> Float64:
    """Return the mean over the query heads that share a head."""
    found = np.zeros((heads, *moment.shape[1:]))
    for number, head in enumerate(head_of):
        found[head] += moment[number]
    return found / np.bincount(head_of, minlength=heads)[:, None, None]


def _by_sample(data: Floating, batch: int, length: int) -> Float64 | None:
    """Return inputs as float64 of shape (batch, length, inputs); None if they are not so many."""
    if data.ndim == 3 and data.shape[:2] == (length, batch) != (batch, length):
        data = data.transpose(1, 0, 2)
    if data.size != batch * length * data.shape[-1]:
        return None
    return data.reshape(batch, length, data.shape[-1]).astype(np.float64)
