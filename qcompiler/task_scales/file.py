"""The file of a task: a scale for some weights of one compiled model, and which model that is."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import InputError, OutputError
from qcompiler.model.edit import tensor_array
from qcompiler.plan import CompressionPlan, Role, save_npz

CODES_KEY = "sha256 of codes"
"""Name of the array in the file that holds the fingerprint of the model's codes, uint8 (32,)."""

_CODES = frozenset((ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4))


@dataclass(frozen=True, slots=True, eq=False)
class TaskScales:
    """What a file of scales holds.

    Attributes:
        scales: weight -> float32 in the shape of the plan's scale.
        codes: fingerprint of the codes that the scales were tuned for, 32 bytes.
    """

    scales: Mapping[str, NDArray[np.float32]]
    codes: bytes


def codes_fingerprint(model: ir.Model) -> bytes:
    """Return the SHA-256 of all integer constants of a compiled model of at most 8 bits, by name."""
    found = hashlib.sha256()
    for graph in model.graphs():
        for name, value in sorted(graph.initializers.items()):
            tensor = value.const_value
            if tensor is not None and tensor.dtype in _CODES:
                found.update(f"{name} {tensor.dtype} {tensor.shape.numpy()}".encode())
                found.update(np.ascontiguousarray(tensor_array(tensor)).tobytes())
    return found.digest()


def save_scales(path: Path, task: TaskScales) -> None:
    """Write a task, byte for byte the same for the same scales.

    Raises:
        OutputError: the file system refuses.
    """
    try:
        save_npz(path, {**task.scales, CODES_KEY: np.frombuffer(task.codes, np.uint8)})
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def load_scales(path: Path, plan: CompressionPlan) -> TaskScales:
    """Read a task and check it against the plan of the model that it is for.

    Raises:
        InputError: it is no such file, or names, shapes, dtypes or values do not fit the plan.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: no file of scales ({error}); give one that qcompile tune-scales wrote") from error
    codes = arrays.pop(CODES_KEY, None)
    if codes is None or codes.dtype != np.uint8 or codes.shape != (32,):
        raise InputError(f"{path}: does not say which codes it is for; give a file that qcompile tune-scales wrote")
    if not arrays:
        raise InputError(f"{path}: holds no scale")
    for name, scale in arrays.items():
        _check(path, name, scale, plan)
    return TaskScales(arrays, codes.tobytes())


def _check(path: Path, name: str, scale: NDArray[np.float32], plan: CompressionPlan) -> None:
    entry = plan.tensors.get(name)
    planned = entry.scale if entry is not None and entry.role is Role.WEIGHT else None
    if planned is None:
        raise InputError(f"{path}: '{name}' is no weight of the compiled model; the file is of another model")
    if scale.dtype != np.float32:
        raise InputError(f"{path}: scale of '{name}' is {scale.dtype}, expected float32")
    if scale.shape != planned.shape:
        raise InputError(
            f"{path}: scale of '{name}' has shape {list(scale.shape)}, the compiled model {list(planned.shape)}"
        )
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError(f"{path}: scale of '{name}' is not positive and finite everywhere")
