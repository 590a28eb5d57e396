"""Two models that hold the same constants, written to be deployed: constants of both in one file, inner names short."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import onnx

SHARED = "shared.bin"
LEAST_SHARED_BYTES = 256
"""Smaller constants stay where they are: what says where they lie takes bytes, too."""


def share(models: Mapping[str, Path], folder: Path) -> tuple[Path, ...]:
    """Write copies of models, and one file of the constants that several of them hold, and return all files.

    Each constant in the file is the bytes of an initializer that has them in at least two models. ONNX Runtime finds
    the file beside a model. Values inside the copies are named by number and nodes not at all: in a model of few bits,
    names of sublayers are several percent of the file. Inputs and outputs keep theirs.

    Args:
        models: name -> a file without external data.
        folder: where to write; what it holds under these names is replaced.
    """
    loaded = [onnx.load(path) for path in models.values()]
    held = [{_content(tensor) for tensor in model.graph.initializer} for model in loaded]
    places: dict[tuple[int, tuple[int, ...], bytes], int] = {}
    joined = bytearray()
    for model in loaded:
        for tensor in model.graph.initializer:
            content = _content(tensor)
            if len(content[2]) < LEAST_SHARED_BYTES or sum(content in contents for contents in held) < 2:
                continue
            if content not in places:
                places[content] = len(joined)
                joined += content[2]
            _point(tensor, places[content], len(content[2]))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.onnx" for name in models]
    for model, path in zip(loaded, files, strict=True):
        shorten(model)
        path.write_bytes(model.SerializeToString())
    (folder / SHARED).write_bytes(joined)
    return (*files, folder / SHARED)


def shorten(model: onnx.ModelProto) -> None:
    """Name the values inside a model by number, in place; a model with graphs inside its nodes is left alone."""
    graph = model.graph
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for n in graph.node for a in n.attribute):
        return
    outer = {value.name for value in (*graph.input, *graph.output)} | {""}
    names = [*(t.name for t in graph.initializer), *(name for node in graph.node for name in node.output)]
    fresh = (name for number in itertools.count() if (name := f"{number:x}_") not in outer)
    short = {name: next(fresh) for name in dict.fromkeys(names) if name not in outer}
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.name = ""
        for names_of in (node.input, node.output):
            names_of[:] = [short.get(name, name) for name in names_of]
    del graph.value_info[:]


def _content(tensor: onnx.TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    """Return type, shape and bytes of a constant."""
    raw = tensor.raw_data if tensor.HasField("raw_data") else onnx.numpy_helper.to_array(tensor).tobytes()
    return tensor.data_type, tuple(tensor.dims), raw


def _point(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    """Let a constant be read from the shared file."""
    kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    kept.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", SHARED), ("offset", str(offset)), ("length", str(length))):
        kept.external_data.add(key=key, value=value)
    tensor.CopyFrom(kept)
