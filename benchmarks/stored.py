"""How many bits the weights of a file really take, read from the file: what a plan says is not evidence.

Weights are those that Conv, Gemm and MatMul multiply by, first, last and depthwise layers among them. What is
counted is what the file stores for their codes, against how many weights the float original has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

MULTIPLIED = frozenset({"Conv", "Gemm", "MatMul"})

_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.INT64: 64,
}
_DECODING = frozenset({"DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight in a file.

    Attributes:
        name: of its codes, where they are unpacked.
        weights: how many numbers it has.
        stored_bytes: what the file holds for its codes.
        packed: the codes are unpacked when the file is loaded.
    """

    name: str
    weights: int
    stored_bytes: int
    packed: bool


@dataclass(frozen=True, slots=True)
class Storage:
    """All weights of a file.

    Attributes:
        weights: one each.
        original_weights: how many numbers the float original's weights have.
        unpacking_bytes: nodes and constants that unpack, of all packed weights together.
    """

    weights: tuple[StoredWeight, ...]
    original_weights: int
    unpacking_bytes: int

    @property
    def mean_bits(self) -> float:
        """Return the stored bits a weight of the original."""
        return 8.0 * sum(w.stored_bytes for w in self.weights) / max(self.original_weights, 1)

    @property
    def packed(self) -> tuple[StoredWeight, ...]:
        """Return the weights that are packed."""
        return tuple(w for w in self.weights if w.packed)

    @property
    def unpacking_each(self) -> float | None:
        """Return the bytes that unpacking takes a packed tensor, None without any."""
        return self.unpacking_bytes / len(self.packed) if self.packed else None

    def within(self, bits: int) -> bool:
        """Return whether the weights take at most so many bits on average, but for whole bytes at their ends."""
        ends = len(self.weights)  # less than one byte a tensor
        return sum(w.stored_bytes for w in self.weights) < self.original_weights * bits / 8 + ends


def storage(model: Path, original: Path) -> Storage:
    """Return what a file stores of the weights of the float original."""
    graph = onnx.load(model).graph
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, StoredWeight] = {}
    helpers: dict[str, int] = {}
    for name in _weight_names(graph):
        codes = _codes_name(name, producers)
        if codes in constants:
            tensor = constants[codes]
            found[codes] = StoredWeight(codes, math.prod(tensor.dims), _stored_bytes(tensor), packed=False)
        elif codes in producers and (parts := _unpacking(codes, producers, constants)) is not None:
            stream = constants[_largest(parts, constants)]
            packed = producers[codes].op_type == "Reshape" and stream.data_type == onnx.TensorProto.UINT8
            shape = onnx.numpy_helper.to_array(constants[producers[codes].input[1]]) if packed else stream.dims
            found[codes] = StoredWeight(codes, math.prod(map(int, shape)), _stored_bytes(stream), packed)
            if packed:
                helpers |= {key: size for key, size in parts.items() if key != stream.name}
    return Storage(tuple(found.values()), original_weights(original), sum(helpers.values()))


def original_weights(model: Path) -> int:
    """Return how many numbers the constant weights of Conv, Gemm and MatMul have, each constant counted once."""
    graph = onnx.load(model, load_external_data=False).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    sizes |= {n.output[0]: math.prod(a.t.dims) for n in graph.node if n.op_type == "Constant" for a in n.attribute}
    return sum(sizes[name] for name in dict.fromkeys(_weight_names(graph)) if name in sizes)


def unexpected_sizes(found: Storage, plan: Path) -> list[str]:
    """Return the packed weights that are not exactly ceil(bits * weights / 8) bytes of the planned bits.

    Args:
        found: what the file stores.
        plan: the plan.json beside it.
    """
    tensors = json.loads(plan.read_text(encoding="utf-8"))["tensors"]
    bits = {t["name"]: t["spec"]["num_bits"] for t in tensors if t["role"] == "weight" and t["spec"]}
    wrong = []
    for weight in found.packed:
        planned = bits.get(weight.name.removesuffix("_q"))
        if planned is None or weight.stored_bytes != -(-planned * weight.weights // 8):
            wrong.append(f"{weight.name}: {weight.stored_bytes} bytes for {weight.weights} weights of {planned} bits")
    return wrong


def _weight_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the second inputs of the products that depend on the model's inputs; unpacking has products too."""
    varying = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if varying.isdisjoint(node.input):
            continue
        varying.update(node.output)
        if node.op_type in MULTIPLIED:
            yield node.input[1]


def _codes_name(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """Return what a weight is decoded from: the input of the last DequantizeLinear behind it, or itself."""
    node = producers.get(name)
    return node.input[0] if node is not None and node.op_type in _DECODING else name


def _unpacking(
    name: str, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> dict[str, int] | None:
    """Return the bytes of all nodes and constants that a value is computed from, None if an input is among them."""
    sizes: dict[str, int] = {}
    pending = [name]
    while pending:
        current = pending.pop()
        if current in sizes or not current:
            continue
        if current in constants:
            sizes[current] = constants[current].ByteSize()
        elif current in producers:
            sizes[current] = producers[current].ByteSize()
            pending += producers[current].input
        else:
            return None
    return sizes


def _largest(parts: Mapping[str, int], constants: Mapping[str, onnx.TensorProto]) -> str:
    """Return the codes among what a weight is computed from: the constant with the most bytes, scales left out."""
    known = [constants[name] for name in parts if name in constants]
    codes = [tensor for tensor in known if tensor.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)]
    return max(codes or known, key=_stored_bytes).name


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    bits = int(math.prod(tensor.dims)) * _BITS[tensor.data_type]
    return -(-bits // 8)
