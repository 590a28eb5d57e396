"""Write a model to disk in bounded memory, the same bytes every time, external data only where it must be."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import onnx
import onnx_ir as ir

from qcompiler.errors import OutputError, QCompileError
from qcompiler.model import dialect
from qcompiler.model.edit import clone, load_external, tensor_bytes

EXTERNAL_ABOVE_BYTES = 2**30
"""Constants of more bytes than this in total go to an external file; protobuf ends at 2 GiB."""

_REPORT = "report.json"
_CHOOSE = "choose another folder with -o"
_FILE_SYSTEM_ERRNOS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
)
_STREAM_ABOVE_BYTES = 2**16
_GRAPH_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER_FIELD = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA_FIELD = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_LENGTH_DELIMITED = 2
_INFERRED_DOMAINS = frozenset(("", "ai.onnx.ml"))


def save_model(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write a model and return the files written: the model, and its external data where there is any.

    Constants are evaluated and written one at a time, so that lazy ones need memory for one only. External
    data, in ``<name>.data`` beside the model, is used only where constants exceed ``EXTERNAL_ABOVE_BYTES``.
    The model is not changed.

    Raises:
        OutputError: the file system refuses.
    """
    copy = clone(model)
    try:
        if constant_bytes(copy) > EXTERNAL_ABOVE_BYTES:
            return _write_with_external_data(copy, path)
        _write_one_file(copy, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return (path,)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return a model as protobuf, without what only costs bytes.

    Types of inner values are left out where every runtime infers them: behind operators of ONNX itself.
    """
    proto = dialect.to_proto(model)
    needed = {o.name for n in model.graph.all_nodes() if n.domain not in _INFERRED_DOMAINS for o in n.outputs}
    for graph in dialect.graphs_of(proto.graph):
        kept = [info for info in graph.value_info if info.name in needed]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return proto


def constant_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers of all graphs."""
    constants = (v.const_value for g in model.graphs() for v in g.initializers.values())
    return sum(t.nbytes for t in constants if t is not None)


def _write_with_external_data(model: ir.Model, path: Path) -> tuple[Path, ...]:
    data = path.with_name(path.name + ".data")
    ir.external_data.unload_from_model(model, path.parent, data.name, size_threshold_bytes=_STREAM_ABOVE_BYTES)
    path.write_bytes(to_proto(model).SerializeToString(deterministic=True))
    return (path, data)


def _write_one_file(model: ir.Model, path: Path) -> None:
    """Write the protobuf with its large constants spliced in one by one, never the whole in memory.

    Protobuf writes a message as its fields one after the other, in any order: everything but the large
    initializers is serialized by protobuf itself, and they are appended to the graph.
    """
    large = _take_large_constants(model)
    load_external(model)
    proto = to_proto(model)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    heads = [_initializer_head(name, tensor) for name, tensor in large]
    length = len(graph) + sum(len(h) + t.nbytes for h, (_, t) in zip(heads, large, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(_field_head(_GRAPH_FIELD, length))
        file.write(graph)
        for head, (name, tensor) in zip(heads, large, strict=True):
            content = tensor_bytes(tensor)
            if len(content) != tensor.nbytes:
                raise QCompileError(f"constant '{name}' has {len(content)} bytes, not {tensor.nbytes}")
            file.write(head)
            file.write(content)


def _take_large_constants(model: ir.Model) -> Sequence[tuple[str, ir.TensorProtocol]]:
    """Remove the large initializers of the main graph from it and return their names and tensors."""
    taken = []
    for name, value in tuple(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _STREAM_ABOVE_BYTES or tensor.dtype == ir.DataType.STRING:
            continue
        del model.graph.initializers[name]
        taken.append((name, tensor))
    return taken


def _initializer_head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """Return the bytes that stand before a tensor's content when it is an initializer of a graph."""
    info = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    inner: bytes = info.SerializeToString(deterministic=True) + _field_head(_RAW_DATA_FIELD, tensor.nbytes)
    return _field_head(_INITIALIZER_FIELD, len(inner) + tensor.nbytes) + inner


def _field_head(number: int, length: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Return an unsigned integer as protobuf writes it: seven bits a byte, lowest first."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


class OutputFolder:
    """The folder that a compilation fills: nobody sees it before it is complete.

    Use as a context manager and write into ``path``, a neighbor of the asked folder. ``commit`` puts it in
    place, ``reject`` puts it beside as ``DIR.failed``; left without either, or by an exception, it is
    removed, and a previous result stays as it was. A full disk inside the block becomes an OutputError.
    """

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        """Check that the folder may be written, before any work is done.

        Raises:
            OutputError: it exists and ``force`` is not set, or is not a result, or cannot be written.
        """
        self.folder = folder.resolve()
        self.failed = self.folder.with_name(self.folder.name + ".failed")
        self._check_replaceable(self.folder, force)
        self._check_replaceable(self.failed, force=True)
        self.path = self.folder
        self._made: tuple[Path, ...] = ()

    def __enter__(self) -> OutputFolder:
        try:
            self._made = tuple(p for p in self.folder.parents if not p.exists())
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.path = self._neighbor("partial")
            self.path.mkdir()
        except OSError as error:
            raise self._refused(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if ".partial-" in self.path.name:
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # what others put there meanwhile stays
                for parent in self._made:
                    parent.rmdir()
        if isinstance(error, OSError) and error.errno in _FILE_SYSTEM_ERRNOS:
            raise self._refused(error) from error

    def commit(self) -> Path:
        """Put the written files in place, replacing a previous result, and return the folder."""
        return self._move_to(self.folder)

    def reject(self) -> Path:
        """Put the written files into ``DIR.failed``, replacing an older one, and return that folder."""
        return self._move_to(self.failed)

    def _move_to(self, place: Path) -> Path:
        previous = self._neighbor("previous")
        try:
            if place.exists():
                place.rename(previous)
            try:
                self.path.rename(place)
            except OSError:
                if previous.exists():
                    previous.rename(place)
                raise
        except OSError as error:
            raise self._refused(error) from error
        self.path = place
        shutil.rmtree(previous, ignore_errors=True)
        return place

    def _neighbor(self, role: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{role}-{secrets.token_hex(4)}")

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(f"{self.folder}: cannot be written ({error.strerror or error}); {_CHOOSE}")

    def _check_replaceable(self, folder: Path, force: bool) -> None:
        try:
            if not folder.exists():
                return
            if not folder.is_dir():
                raise OutputError(f"{folder}: is a file, not a folder; {_CHOOSE}")
            if not _is_result(folder):
                raise OutputError(f"{folder}: is not a qcompile result, so it is not replaced; {_CHOOSE}")
            if not force:
                raise OutputError(f"{folder}: exists; give --force to replace it, or {_CHOOSE}")
        except OSError as error:
            raise self._refused(error) from error


def _is_result(folder: Path) -> bool:
    """Return True for an empty folder and for one that holds a report, its own or one per target."""
    entries = list(folder.iterdir())
    reports = [folder / _REPORT, *(e / _REPORT for e in entries if e.is_dir())]
    return not entries or any(r.is_file() for r in reports)
