"""Fingerprints: of files, to say which model it was, and of a graph's structure, to catch edits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

_CHUNK_BYTES = 2**20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    return files_sha256((path,))


def files_sha256(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' contents one after the other, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def structure_fingerprint(model: ir.Model) -> str:
    """Return a fingerprint of everything in a model but the bytes of its weights.

    Nodes, attributes, names, types, shapes and which tensor object each constant is go in, so that a
    replaced constant shows even if it has the same name, type and shape. Therefore two fingerprints compare
    only within one process; a clone that shares its tensors has the fingerprint of the original.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(("\x1f".join(str(p) for p in parts) + "\x1e").encode())

    add("model", sorted(model.opset_imports.items()), sorted(model.metadata_props.items()))
    for graph in model.graphs():
        add("graph", graph.name)
        for role, values in (("input", graph.inputs), ("output", graph.outputs)):
            for value in values:
                add(role, value.name, value.type, value.shape)
        for value in graph.initializers.values():
            tensor = value.const_value
            add("constant", value.name, id(tensor), *(() if tensor is None else (tensor.dtype, tensor.shape)))
        for node in graph:
            add("node", node.name, node.domain, node.op_type, node.overload)
            add("inputs", *(None if v is None else v.name for v in node.inputs))
            add("outputs", *(v.name for v in node.outputs))
            for name, attribute in sorted(node.attributes.items()):
                add("attribute", name, attribute.type, _attribute_identity(attribute))
    return digest.hexdigest()


def _attribute_identity(attribute: ir.Attr) -> object:
    kinds = ir.AttributeType
    if attribute.is_ref():
        return attribute.ref_attr_name
    if attribute.type in (kinds.TENSOR, kinds.SPARSE_TENSOR):
        return id(attribute.value)
    if attribute.type in (kinds.TENSORS, kinds.SPARSE_TENSORS):
        return [id(t) for t in attribute.value]
    if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
        return ""
    return attribute.value
