"""Putting the scales of a task into a compiled model, without compiling it again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.errors import InputError, OutputError, QCompileError
from qcompiler.model.edit import constant_of, replace_constant, tensor_array
from qcompiler.model.read import read_source, to_ir
from qcompiler.model.save import save_model
from qcompiler.plan import CompressionPlan
from qcompiler.runtime.sessions import open_session
from qcompiler.task_scales.file import codes_fingerprint, load_scales

INT32_MAX = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedScales:
    """What was written.

    Attributes:
        path: the new model.
        weights: how many weights have new scales.
        scales: how many numbers that are.
        biases: integer biases that were stored anew, because their grid follows the weight's.
    """

    path: Path
    weights: int
    scales: int
    biases: int


def apply_scales(model: Path, scales: Path, out: Path, *, force: bool = False) -> AppliedScales:
    """Write a compiled model with other scales; everything else in it stays byte for byte what it is.

    An int32 bias counts in steps of weight scale times input scale. Its codes are rounded anew, so that the bias
    stays what it was within half a step.

    Args:
        model: a result folder, or the ``model.onnx`` in one.
        scales: what ``tune_scales`` wrote.
        out: the file to write.
        force: replace an existing file.

    Raises:
        InputError: the scales do not fit the model, or it stores a scale in a way that cannot be replaced.
        OutputError: the file exists, or cannot be written.
        RuntimeUnavailable: ONNX Runtime does not load what was written; it is removed again.
    """
    compiled = model / "model.onnx" if model.is_dir() else model
    if out.exists() and (out.is_dir() or not force or out.samefile(compiled)):
        raise OutputError(f"{out}: exists; give --force to replace a file, or another -o (never the model itself)")
    plan = CompressionPlan.load(compiled.parent)
    task = load_scales(scales, plan)
    graph = to_ir(read_source(compiled))
    before = codes_fingerprint(graph)
    if task.codes != before:
        raise InputError(f"{scales}: was tuned for other codes than those of {compiled}; tune it for this result")
    count = 0
    for name, wanted in task.scales.items():
        planned = plan.tensors[name].scale
        if planned is None:
            raise QCompileError(f"weight '{name}' has lost its scale")
        count += _replace(graph, compiled, name, planned, wanted)
    written = save_model(graph, out)
    try:
        open_session(out)
        if codes_fingerprint(to_ir(read_source(out))) != before:
            raise QCompileError(f"{out}: codes are not those of {compiled}")
    except Exception:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    sizes = sum(int(scale.size) for scale in task.scales.values())
    return AppliedScales(path=out, weights=len(task.scales), scales=sizes, biases=count)


def _replace(model: ir.Model, path: Path, name: str, planned: NDArray[np.float32], wanted: NDArray[np.float32]) -> int:
    """Replace every copy of one weight's scale and return how many integer biases followed."""
    pattern = re.compile(rf"{re.escape(name)}_scale(_\d+)?")
    biases = found = 0
    for graph in model.graphs():
        for key, value in list(graph.initializers.items()):
            array = constant_of(value) if pattern.fullmatch(key) else None
            if array is None or not np.array_equal(array.reshape(-1), planned.reshape(-1).astype(array.dtype)):
                continue
            for use in tuple(value.uses()):
                biases += _follow(graph, use.node, name, wanted.reshape(-1) / planned.reshape(-1).astype(np.float64))
            replace_constant(value, wanted.reshape(array.shape).astype(array.dtype))
            found += 1
    if not found:
        raise InputError(f"{path}: the scale of '{name}' is not stored as one array, so it cannot be replaced; compile")
    return biases


def _follow(graph: ir.Graph, decode: ir.Node, name: str, ratio: NDArray[np.float64]) -> int:
    """Store the int32 biases of the layers behind a weight's DequantizeLinear on their new grids."""
    done = 0
    for use in tuple(decode.outputs[0].uses()) if decode.op_type == "DequantizeLinear" else ():
        bias = use.node.inputs[2] if use.idx == 1 and len(use.node.inputs) > 2 else None
        maker = bias.producer() if bias is not None else None
        stored, steps = (maker.inputs[0], maker.inputs[1]) if maker is not None else (None, None)
        codes = stored.const_value if stored is not None else None
        if stored is None or steps is None or codes is None or codes.dtype is not ir.DataType.INT32:
            continue
        moved = np.rint(tensor_array(codes) / ratio)
        if np.abs(moved).max(initial=0.0) > INT32_MAX:
            raise InputError(f"the bias of '{use.node.name}' leaves int32 with the new scale of '{name}'")
        grid = constant_of(steps)
        if grid is None:
            raise QCompileError(f"the bias of '{use.node.name}' has a scale that is computed")
        replace_constant(stored, moved.astype(np.int32))
        replace_constant(steps, (grid * ratio).astype(grid.dtype))
        done += 1
    return done
