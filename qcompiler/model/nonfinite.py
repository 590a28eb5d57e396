"""Find weights that are not numbers: a model that holds them cannot be compressed, and is not worth it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import ModelError

SCAN_LIMIT_BYTES = 4 * 2**30
"""Constants beyond this many bytes in total are not looked at; a note says so."""

_CHUNK_BYTES = 2**24
_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE))
_WEIGHT_OPS = frozenset(
    (
        "Conv",
        "ConvTranspose",
        "MatMul",
        "Gemm",
        "LSTM",
        "GRU",
        "RNN",
        "BatchNormalization",
        "LayerNormalization",
    )
)
_TABLE_OPS = frozenset(("Gather", "GatherElements", "GatherND"))
_MOVERS = frozenset(("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"))


def check_finite(model: ir.Model, path: Path) -> tuple[str, ...]:
    """Return notes about NaN and infinity in constants where a model may mean them, such as masks.

    Big external constants are read in chunks, never held as a whole.

    Raises:
        ModelError: a weight (of a convolution, a matrix product, a recurrent or normalization layer) holds
            one, or an embedding table holds NaN.
    """
    notes = []
    budget = SCAN_LIMIT_BYTES
    for value, tensor in _float_constants(model):
        budget -= tensor.nbytes
        if budget < 0:
            notes.append(f"constants beyond the first {SCAN_LIMIT_BYTES // 2**30} GiB were not searched for NaN")
            break
        nans, infinities = _count_nonfinite(tensor)
        if not nans and not infinities:
            continue
        found = f"'{value.name}' holds {nans} NaN and {infinities} infinite values"
        for node in _computing_users(value):
            if node.op_type in _WEIGHT_OPS or (node.op_type in _TABLE_OPS and nans):
                raise ModelError(
                    f"{path}: weight {found} ({node.op_type} node '{node.name}'); train or export it again"
                )
        notes.append(f"constant {found}; taken for a mask or a limit")
    return tuple(notes)


def _float_constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in _FLOATS and tensor.size:
                yield value, tensor


def _computing_users(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that compute with a value, looking through nodes that only move it."""
    for node in value.consumers():
        if node.op_type in _MOVERS and node.inputs[0] is value:
            yield from _computing_users(node.outputs[0])
        else:
            yield node


def _count_nonfinite(tensor: ir.TensorProtocol) -> tuple[int, int]:
    """Return how many values of a tensor are NaN, and how many infinite."""
    nans = infinities = 0
    for chunk in _chunks(tensor):
        with np.errstate(all="ignore"):
            if np.isfinite(chunk.sum(dtype=np.promote_types(chunk.dtype, np.float32))):
                continue
        nans += int(np.isnan(chunk).sum())
        infinities += int(np.isinf(chunk).sum())
    return nans, infinities


def _chunks(tensor: ir.TensorProtocol) -> Iterator[NDArray[np.floating]]:
    """Yield a tensor's values, flat; those of an external tensor are read piece by piece."""
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.numpy().reshape(-1)
        return
    dtype = tensor.dtype.numpy().newbyteorder("<")
    left = tensor.size
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        while left:
            count = min(left, _CHUNK_BYTES // dtype.itemsize)
            yield np.fromfile(file, dtype=dtype, count=count)
            left -= count
