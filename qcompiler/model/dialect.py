"""What ONNX can say and ``onnx_ir`` cannot hold: sparse constants, map types, the long name of the domain."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from qcompiler.errors import ModelError
from qcompiler.model.logs import quiet_libraries

_LONG_DOMAIN = "ai.onnx"
_DENSE_LIMIT_BYTES = 2**31
_TYPE = "qcompiler.type"


def from_proto(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    """Return a protobuf model as ``onnx_ir``; the protobuf is used up.

    Sparse constants become dense, as in ONNX Runtime; map types are set aside for ``to_proto``.

    Args:
        proto: the model.
        folder: where its external data lies.

    Raises:
        ModelError: a sparse constant would be too large as a dense one.
    """
    for opset in proto.opset_import:
        opset.domain = "" if opset.domain == _LONG_DOMAIN else opset.domain
    for graph in graphs_of(proto.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, folder))
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                    dense = _dense(attribute.sparse_tensor, folder)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
    types = _take_map_types(proto)
    with quiet_libraries():
        model = ir.serde.deserialize_model(proto)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in types:
            value.meta[_TYPE] = types[value.name]
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return a model as protobuf, with what ``from_proto`` set aside."""
    proto = ir.serde.serialize_model(model)
    infos = [*proto.graph.input, *proto.graph.output]
    for info, value in zip(infos, (*model.graph.inputs, *model.graph.outputs), strict=True):
        if _TYPE in value.meta:
            info.type.ParseFromString(value.meta[_TYPE])
    return proto


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs, in the order of ``ir.Model.graphs``."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)
            for inner in attribute.graphs:
                yield from graphs_of(inner)


def _dense(sparse: onnx.SparseTensorProto, folder: Path) -> onnx.TensorProto:
    """Return a sparse tensor as a dense one; indices are flat positions, or one row per value."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    size = prod(shape) * ir.DataType(sparse.values.data_type).itemsize
    if size > _DENSE_LIMIT_BYTES:
        raise ModelError(f"sparse constant '{name}' has {size} bytes as a dense one; the limit is 2 GiB")
    values: NDArray[Any] = numpy_helper.to_array(sparse.values, str(folder))
    indices: NDArray[np.int64] = numpy_helper.to_array(sparse.indices, str(folder))
    dense = np.zeros(shape, dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return numpy_helper.from_array(dense, name)


def _take_map_types(proto: onnx.ModelProto) -> dict[str, bytes]:
    """Remove map types everywhere and return those of the model's inputs and outputs, serialized."""
    types = {}
    for info in (*proto.graph.input, *proto.graph.output):
        if _holds_map(info.type):
            types[info.name] = info.type.SerializeToString(deterministic=True)
    for graph in graphs_of(proto.graph):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if _holds_map(info.type):
                info.ClearField("type")
    return types


def _holds_map(type_: onnx.TypeProto) -> bool:
    if type_.HasField("sequence_type"):
        return _holds_map(type_.sequence_type.elem_type)
    if type_.HasField("optional_type"):
        return _holds_map(type_.optional_type.elem_type)
    return bool(type_.HasField("map_type"))
