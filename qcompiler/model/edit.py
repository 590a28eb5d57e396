"""Small edits and questions on ``onnx_ir`` graphs that several passes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

_WHOLE_BYTE_BITS = 8


def clone(model: ir.Model) -> ir.Model:
    """Return a copy of a model's structure that shares its tensors."""
    return model.clone()


def all_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Graph]]:
    """Yield every node with the graph it is in: the main graph in order, each subgraph after its node."""
    yield from _nodes_of(model.graph)


def _nodes_of(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Graph]]:
    for node in tuple(graph):
        yield node, graph
        for subgraph in subgraphs(node):
            yield from _nodes_of(subgraph)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs among a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Return name -> value over all graphs; unnamed values (omitted outputs) are left out."""
    named: dict[str, ir.Value] = {}
    for graph in model.graphs():
        values = (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs))
        named.update((v.name, v) for v in values if v.name)
    return named


def value_names(model: ir.Model) -> set[str]:
    """Return the names of all values of all graphs."""
    return set(values_by_name(model))


def fresh_name(taken: set[str], wanted: str) -> str:
    """Return a name that is not in ``taken``, ``wanted`` itself if possible, and add it there."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def take_over(node: ir.Node, value: ir.Value) -> None:
    """Let a value stand for a node's first output, under its name and type, and remove the node from its graph."""
    old, graph = node.outputs[0], node.graph
    name = old.name
    value.type, value.shape = old.type, old.shape
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    if isinstance(graph, ir.Graph):
        graph.remove(node, safe=True)
    value.name = name


def drop_unused(model: ir.Model) -> None:
    """Remove the nodes and constants of all graphs that nothing reads."""
    RemoveUnusedNodesPass()(model)
    for graph in model.graphs():
        for name, value in tuple(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of a constant value, None if the value is not constant.

    External data is read, not mapped: memory is free again when the array is dropped. The array may be
    read-only and may share memory with the model: copy it before writing.
    """
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor_array(tensor)


def tensor_array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Return a tensor's array; external data is read from its file, never kept mapped."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < _WHOLE_BYTE_BITS:
        return tensor.numpy()
    dtype = tensor.dtype.numpy().newbyteorder("<")
    return np.frombuffer(tensor_bytes(tensor), dtype=dtype).reshape(tensor.shape.numpy())


def tensor_bytes(tensor: ir.TensorProtocol) -> bytes:
    """Return a tensor's content as it stands in a file; external data is read, never kept mapped."""
    if isinstance(tensor, ir.StringTensor):
        return b"\0".join(tensor.string_data())
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.tobytes()
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        return file.read(tensor.nbytes)


def load_external(model: ir.Model) -> None:
    """Read all external constants of a model into memory."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor_array(tensor), dtype=tensor.dtype, name=value.name)


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """Add a constant to a graph and return its value.

    The name must be unused; see ``fresh_name``.
    """
    tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray) else array
    tensor.name = name
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_constant(value: ir.Value, array: NDArray[Any] | ir.TensorProtocol) -> None:
    """Give a constant new content, and the value the content's type and shape."""
    tensor = ir.tensor(array, name=value.name) if isinstance(array, np.ndarray) else array
    value.const_value = tensor
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(tensor.shape.numpy())
