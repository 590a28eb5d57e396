"""Read a model file without trusting it: the protobuf, and where its external data may lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qcompiler.errors import ModelError
from qcompiler.model import dialect
from qcompiler.model.edit import tensor_array

_PROTOBUF_LIMIT = 2**31
_FIRST_FIELD_TAG = b"\x08"
"""Every exporter writes ``ir_version``, field 1, first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model file as read.

    Attributes:
        path: the file.
        proto: its content; external data is checked and not read.
        external: the files its external data lies in, sorted.
    """

    path: Path
    proto: onnx.ModelProto
    external: tuple[Path, ...]

    @property
    def total_bytes(self) -> int:
        """Size of the file and of its external data, in bytes."""
        return self.path.stat().st_size + sum(p.stat().st_size for p in self.external)


def read_source(path: Path) -> Source:
    """Return the content of a model file.

    Raises:
        ModelError: the file is missing, is not ONNX, is cut short, holds a name that is no text, or its
            external data is missing, short or outside the model's folder.
    """
    proto = _parse(path)
    for text in _texts(proto):
        if isinstance(text, bytes):  # what protobuf gives where text is not UTF-8
            raise ModelError(f"{path}: the name {text!r} is not UTF-8; rename it or export the model again")
    files = {_external_file(path, tensor) for tensor in all_tensors(proto) if _is_external(tensor)}
    return Source(path=path, proto=proto, external=tuple(sorted(files)))


def _parse(path: Path) -> onnx.ModelProto:
    content = _content(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        if content.startswith(_FIRST_FIELD_TAG):
            raise ModelError(f"{path}: is truncated or damaged; copy or export it again") from error
        raise ModelError(f"{path}: is not an ONNX file; give a model exported as .onnx") from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path}: is not an ONNX model (it has no outputs); give a model exported as .onnx")
    return proto


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"{path}: is not a file; give an .onnx file")
        if size >= _PROTOBUF_LIMIT:
            raise ModelError(
                f"{path}: {size} bytes exceed protobuf's limit of 2 GiB; store the weights as external data"
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not content:
        raise ModelError(f"{path}: is empty; export the model again")
    return content


def _texts(proto: onnx.ModelProto) -> Iterator[object]:
    """Yield every name and comment of a model."""
    yield from (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    yield from (opset.domain for opset in proto.opset_import)
    yield from (text for entry in proto.metadata_props for text in (entry.key, entry.value))
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
        yield from (text for node in function.node for text in _node_texts(node))
    for graph in dialect.graphs_of(proto.graph):
        yield from (graph.name, graph.doc_string, *(t.name for t in graph.initializer))
        yield from (text for node in graph.node for text in _node_texts(node))
        for info in (*graph.input, *graph.output, *graph.value_info):
            yield from (info.name, *(d.dim_param for d in info.type.tensor_type.shape.dim))


def _node_texts(node: onnx.NodeProto) -> Iterator[object]:
    yield from (node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output)
    yield from (attribute.name for attribute in node.attribute)


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: initializers and attributes, in subgraphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _external_file(model: Path, tensor: onnx.TensorProto) -> Path:
    """Return the file that holds a tensor's external data, after checking place and size."""
    where = f"{model}: external data of tensor '{tensor.name}'"
    try:
        info = onnx.external_data_helper.ExternalDataInfo(tensor)
        wanted = _tensor_bytes(tensor)
    except ValueError as error:  # a negative or worded offset, an unknown type
        raise ModelError(f"{where} is described wrongly ({error}); export it again") from error
    location = str(info.location)
    folder = model.parent.resolve()
    outside = f"{where} is at '{location}', outside the model's folder; move the file beside the model"
    if PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute():
        raise ModelError(outside)
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise ModelError(outside)
    if not location or not file.is_file():
        raise ModelError(f"{where} is missing: no file '{location}' beside the model; copy it there")
    offset, length = int(info.offset or 0), int(info.length or wanted)
    if length != wanted:
        raise ModelError(f"{where} states {length} bytes, its shape and type need {wanted}; export it again")
    found = file.stat().st_size
    if offset + length > found:
        raise ModelError(
            f"{where} is short: '{location}' has {found} bytes, {offset + length} are needed; copy it again"
        )
    return file


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    size = 1
    for dimension in tensor.dims:
        size *= dimension
    return int(-(-size * ir.DataType(tensor.data_type).bitwidth // 8))


def to_ir(source: Source) -> ir.Model:
    """Return the model as ``onnx_ir``; external constants are read from their file when asked for.

    Those in attributes of nodes are read at once: whatever looks at attributes expects their value there.
    """
    folder = source.path.parent.resolve()
    model = dialect.from_proto(source.proto, folder)
    for node in model.graph.all_nodes():
        for name, attribute in tuple(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                array = tensor_array(_located(attribute.value, folder))
                node.attributes[name] = ir.AttrTensor(name, ir.Tensor(array, dtype=attribute.value.dtype))
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _located(value.const_value, folder)
    return model


def _located(tensor: ir.ExternalTensor, folder: Path) -> ir.ExternalTensor:
    """Return the tensor with an absolute path, so that it can be read wherever the model is saved."""
    return ir.ExternalTensor(
        (folder / tensor.location).resolve(),
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )
