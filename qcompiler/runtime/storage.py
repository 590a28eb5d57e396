"""What the bytes of a written model are: weights by how they are stored, scales, biases, and the graph around them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from qcompiler.model.weights import WEIGHT_INPUTS

PACKED, SPARSE, WHOLE, FLOAT = "weights below 8 bits", "sparse weights", "8-bit weights", "float weights"
ROWS = "embedding rows"
SCALES, BIASES, OTHER, GRAPH = "scales", "biases", "other constants", "graph"

_Uses = Mapping[str, list[tuple[onnx.NodeProto, int]]]
_ON_THE_WAY = frozenset({"Cast", "Concat", "Div", "MatMul", "Mod", "Reshape"})
"""Operators between a packed stream and the table that it is looked up in."""
_SPARSE = frozenset({"CumSum", "ScatterElements", "Xor"})
"""Operators that only the decoding of sparse weights has, from a mask, gaps or streams on."""
_DECODING = _ON_THE_WAY | {"Add", "Gather", "Mul", "Slice", "Sub", "Transpose"}
_CODED = _ON_THE_WAY | {"Gather", "Transpose", "Xor"}
"""Operators between a stream of code words and the weights that they make."""
_BYTES = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})
_NARROW = _BYTES | {onnx.TensorProto.UINT16, onnx.TensorProto.FLOAT16}
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def stored_bytes(result: Path, total: int) -> dict[str, int]:
    """Return what a model's bytes are spent on, the largest part first; the parts add up to ``total``.

    Args:
        result: the written model; its external data is not read.
        total: bytes of the model with its external data.
    """
    graph = onnx.load(str(result), load_external_data=False).graph
    makers: dict[str, str] = {}
    uses: defaultdict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in _nodes(graph):
        for index, name in enumerate(node.input):
            uses[name].append((node, index))
        makers |= dict.fromkeys(node.output, node.op_type)
    tensors = list(_tensors(graph))
    types = {t.name: t.data_type for t in tensors}
    parts: Counter[str] = Counter()
    for tensor in tensors:
        parts[_part(tensor, uses, types, makers)] += _bytes(tensor)
    parts[GRAPH] += total - sum(parts.values())
    return dict(parts.most_common())


def _part(tensor: onnx.TensorProto, uses: _Uses, types: Mapping[str, int], makers: Mapping[str, str]) -> str:
    users = uses.get(tensor.name, [])
    positions = {(node.op_type, index) for node, index in users}
    if tensor.data_type == onnx.TensorProto.UINT8 and _is_split(tensor.name, uses):
        return PACKED
    if tensor.data_type in _BYTES and _is_sparse(tensor.name, uses, makers):
        return SPARSE
    if tensor.data_type == onnx.TensorProto.INT8:
        if users and all(node.op_type == "Gather" and node.input[1] in makers for node, _ in users):
            return PACKED  # the levels that numbers stand for
        return SCALES if positions and all(index == 2 for _, index in positions) else WHOLE
    if tensor.data_type == onnx.TensorProto.UINT8 and _is_looked_up(tensor.name, uses, types):
        return PACKED
    narrow = tensor.data_type in _NARROW or ("GatherBlockQuantized", 2) in positions
    if narrow and any(_decodes_rows(node, index, uses) for node, index in users):
        return ROWS
    if any(op in ("QuantizeLinear", "DequantizeLinear") and index > 0 for op, index in positions):
        return SCALES
    if tensor.data_type in _FLOATS and any(_scales_codes(node, tensor.name, makers) for node, _ in users):
        return SCALES
    if any(op in ("Conv", "ConvTranspose", "Gemm") and index == 2 for op, index in positions):
        return BIASES
    if tensor.data_type == onnx.TensorProto.INT32 and ("DequantizeLinear", 0) in positions:
        return BIASES
    if tensor.data_type in _FLOATS and any(index in WEIGHT_INPUTS.get(op, ()) for op, index in positions):
        return FLOAT
    return OTHER


def _is_looked_up(name: str, uses: _Uses, types: Mapping[str, int]) -> bool:
    """Return True if numbers become indices into a computed table; the palettes of constants are stored ones."""
    for node, index in uses.get(name, []):
        if node.op_type == "Gather" and index == 1:
            return node.input[0] not in types
        if node.op_type in _ON_THE_WAY and _is_looked_up(node.output[0], uses, types):
            return True
    return False


def _decodes_rows(node: onnx.NodeProto, index: int, uses: _Uses) -> bool:
    """Return True for a Gather of what rows of a table are decoded from: places, codes, scales, offsets."""
    if node.op_type == "GatherBlockQuantized":
        return index in (0, 2)
    users = uses.get(node.output[0], [])
    return node.op_type == "Gather" and index == 0 and bool(users) and all(u.op_type == "Cast" for u, _ in users)


def _is_sparse(name: str, uses: _Uses, makers: Mapping[str, str]) -> bool:
    """Return True for masks, gaps, streams and connections, and for the values that they put in their places."""
    for node, index in uses.get(name, []):
        if node.op_type in _SPARSE or (node.op_type == "Gather" and index == 0 and makers.get(node.input[1]) == "Mul"):
            return True
        if node.op_type in _DECODING and index < 2 and _is_sparse(node.output[0], uses, makers):
            return True
    return False


def _is_split(name: str, uses: _Uses) -> bool:
    """Return True for the stream behind an XOR network, and its connections: what it makes is divided by weight."""
    return any(
        node.op_type == "Split" or (node.op_type in _CODED and _is_split(node.output[0], uses))
        for node, _ in uses.get(name, [])
    )


def _scales_codes(node: onnx.NodeProto, name: str, makers: Mapping[str, str]) -> bool:
    """Return True for the product of a weight's scale with its codes, or with a scale found at run time."""
    others = {makers.get(value) for value in node.input if value != name}
    return node.op_type == "Mul" and bool(others & {"Cast", "DynamicQuantizeLinear"})


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for inner in _subgraphs(node):
            yield from _tensors(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def _bytes(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    size = int(np.prod(tensor.dims, dtype=np.int64))
    return size * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
