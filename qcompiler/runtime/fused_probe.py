"""The probabilities inside a fused attention operator, found out by feeding it values that name the keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.attention_parts import AttentionBlock, Projection, name_of
from qcompiler.model.save import to_proto
from qcompiler.quant.heads import rotation_matrices
from qcompiler.runtime.sessions import one_line, open_session

if TYPE_CHECKING:
    import onnxruntime

Floating = NDArray[np.floating]
Captured = Mapping[str, NDArray[np.generic]]
Arrays = list[NDArray[np.generic] | None]

IR_VERSION = 10
CACHES = {"MultiHeadAttention": (6, 7), "GroupQueryAttention": (3, 4), "Attention": (4, 5)}
"""Operator -> inputs with the keys and values of earlier tokens."""

BIAS = 3
"""Input of MultiHeadAttention that is added to queries, keys and values."""


class FusedProbe:
    """Runs one fused node alone, with values in the place of its own, of which each is 1 for one key and 0 for others.

    What comes out are the probabilities of those keys: masks, caches, rotations and whatever else the operator does
    need not be known.

    Args:
        block: of a fused operator.
        constants: arrays of the graph's constants by name.
    """

    def __init__(self, block: AttentionBlock, constants: Captured) -> None:
        self._block, self._node, self._constants = block, block.node, constants
        self._session: onnxruntime.InferenceSession | None = None

    @property
    def wanted(self) -> list[str]:
        """Names of the node's inputs."""
        return [n for n in map(name_of, self._node.inputs) if n]

    def length(self, captured: Captured) -> int:
        """Return how many queries there are in a sample."""
        query = np.asarray(captured[name_of(self._node.inputs[0])])
        return int(query.shape[2] if self._four(query) else query.shape[1])

    def operands(self, captured: Captured) -> tuple[Floating, Floating, Floating] | str:
        """Return queries and keys (batch, heads, length, size) and probabilities (batch, heads, queries, keys).

        A reason in words where the operator is fed from a cache or cannot run alone.
        """
        inputs = self._inputs(captured)
        for index in CACHES[self._node.op_type]:
            cache = inputs[index] if index < len(inputs) else None
            if cache is not None and cache.size:
                return "the operator reads keys and values of a cache"
        parts = self._parts(inputs)
        if parts is None:
            return "the operator packs its inputs in a way that is not known"
        queries, keys, values = parts
        try:
            weights = self._probabilities(inputs, values)
        except Exception as error:  # the binding raises a dozen unrelated types
            return f"the operator does not run alone: {one_line(error)}"
        return self._rotated(queries), self._rotated(keys), weights

    def _inputs(self, captured: Captured) -> Arrays:
        names = map(name_of, self._node.inputs)
        return [(self._constants[n] if n in self._constants else captured[n]) if n else None for n in names]

    def _four(self, query: NDArray[np.generic]) -> bool:
        return self._node.domain != "com.microsoft" and query.ndim == 4

    # -- queries, keys and values in the inputs --------------------------------------------------------

    def _shared(self) -> int:
        value = self._block.value
        return len(value.rows) if isinstance(value, Projection) else self._block.heads

    def _parts(self, inputs: Arrays) -> tuple[Floating, Floating, Floating] | None:
        """Return queries, keys and values as (batch, heads, length, size), without a rotation inside."""
        query, key, value = (_floats(a) for a in inputs[:3])
        heads, shared = self._block.heads, self._shared()
        if query is None:
            return None
        found: list[Floating]
        if key is None:
            if query.ndim == 5:
                found = [query[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3)]
            else:
                size = query.shape[-1] // (heads + 2 * shared)
                cuts = np.split(query, [heads * size, (heads + shared) * size], axis=-1)
                found = [_by_head(a, n) for a, n in zip(cuts, (heads, shared, shared), strict=True)]
        elif value is None:
            found = [_by_head(query, heads), *(key[:, :, :, i].transpose(0, 2, 1, 3) for i in range(2))]
        else:
            found = [_by_head(a, n) for a, n in ((query, heads), (key, shared), (value, shared))]
        bias = inputs[BIAS] if len(inputs) > BIAS and self._node.op_type == "MultiHeadAttention" else None
        if bias is not None:
            cuts = np.split(np.asarray(bias, np.float32), np.cumsum([a.shape[1] * a.shape[3] for a in found])[:2])
            found = [np.asarray(a + _by_head(b[None, None], a.shape[1])) for a, b in zip(found, cuts, strict=True)]
        return found[0], found[1], found[2]

    def _rotated(self, vectors: Floating) -> Floating:
        """Return vectors with the rotation that the operator itself applies."""
        rotation = next(
            (p.rotation for p in (self._block.query, self._block.key) if isinstance(p, Projection) and p.rotation), None
        )
        flag = self._node.attributes.get("do_rotary")
        if rotation is None or flag is None or not flag.as_int():
            return vectors
        cos, sin = (
            np.asarray(self._constants[n], np.float32)[: vectors.shape[2]] for n in (rotation.cos, rotation.sin)
        )
        every = rotation_matrices(cos, sin, vectors.shape[3], interleaved=rotation.interleaved, halved=rotation.halved)
        return np.asarray(np.einsum("lij,bhlj->bhli", every, vectors))

    # -- probabilities ---------------------------------------------------------------------------------

    def _probabilities(self, inputs: Arrays, values: Floating) -> Floating:
        batch, shared, keys, size = values.shape
        found = []
        for first in range(0, keys, size):
            count = min(size, keys - first)
            naming = np.zeros((batch, shared, keys, size), np.float32)
            naming[:, :, first + np.arange(count), np.arange(count)] = 1.0
            output = self._run(self._with_values(inputs, naming))
            by_head = output if output.ndim == 4 else _by_head(output, self._block.heads)
            found.append(by_head[..., :count])
        return np.concatenate(found, axis=3)

    def _with_values(self, inputs: Arrays, values: Floating) -> Arrays:
        """Return the node's inputs with other values, and without a bias of the values."""
        found = list(inputs)
        flat = values.transpose(0, 2, 1, 3)
        query, key = inputs[0], inputs[1]
        if key is None and query is not None:
            packed = np.array(query, np.float32)
            if packed.ndim == 5:
                packed[:, :, :, 2] = flat
            else:
                packed[:, :, packed.shape[2] - flat.shape[2] * flat.shape[3] :] = flat.reshape(*flat.shape[:2], -1)
            found[0] = packed
        elif inputs[2] is None:
            packed = np.array(key, np.float32)
            packed[:, :, :, 1] = flat
            found[1] = packed
        else:
            four = np.asarray(inputs[2]).ndim == 4
            found[2] = np.ascontiguousarray(values if four else flat.reshape(*flat.shape[:2], -1))
        if self._node.op_type == "MultiHeadAttention" and len(found) > BIAS and found[BIAS] is not None:
            bias = np.array(found[BIAS], np.float32)
            bias[bias.size - flat.shape[2] * flat.shape[3] :] = 0.0
            found[BIAS] = bias
        return found

    def _run(self, inputs: Arrays) -> Floating:
        session = self._session or self._open(inputs)
        self._session = session
        feeds = {f"input{i}": a for i, a in enumerate(inputs) if a is not None}
        return np.asarray(session.run(["output0"], feeds)[0])

    def _open(self, inputs: Arrays) -> onnxruntime.InferenceSession:
        """Return a session of the node alone."""
        node = self._node
        given = [
            ir.Value(name=f"input{i}", type=ir.TensorType(ir.DataType.from_numpy(a.dtype))) if a is not None else None
            for i, a in enumerate(inputs)
        ]
        count = len(node.outputs)
        copy = ir.Node(node.domain, node.op_type, given, attributes=list(node.attributes.values()), num_outputs=count)
        for index, value in enumerate(copy.outputs):
            value.name = f"output{index}" if index == 0 or name_of(node.outputs[index]) else ""
        copy.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        versions = node.graph.opset_imports if isinstance(node.graph, ir.Graph) else {}
        graph = ir.Graph(
            [v for v in given if v is not None],
            [copy.outputs[0]],
            nodes=[copy],
            opset_imports={"": versions.get("", 21), node.domain: versions.get(node.domain, 1)},
            name="node",
        )
        return open_session(to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString(), optimize=False)


def _by_head(data: Floating, heads: int) -> Floating:
    """Return (batch, heads, length, size) from (batch, length, heads * size), or from that itself."""
    if data.ndim == 4:
        return data
    return data.reshape(*data.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _floats(data: NDArray[np.generic] | None) -> Floating | None:
    return None if data is None else np.asarray(data, np.float32)
