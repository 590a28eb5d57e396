"""ONNX's own test of every operator, as models to compile: as they are, and with their weights as constants."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

NEWEST_OPSET = 26
NEWEST_IR = 13
"""What the installed ONNX Runtime reads; a test checks that."""

WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "MatMul": (1,),
    "Gemm": (1, 2),
    "Gather": (0,),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}
"""Operator -> inputs that hold what training found: weights, biases, tables."""

ROOM_BYTES = 200_000
SAMPLES = 6

Inputs = dict[str, NDArray[Any]]


@functools.cache
def node_cases() -> dict[str, Any]:
    """Return name -> test case, with ``model`` and ``data_sets``; the onnx package makes them in some seconds."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that claims to be no newer than what the runtime reads; most operators did not change."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, NEWEST_IR)
    for opset in copy.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, NEWEST_OPSET)
    return copy


def stored_inputs(case: Any) -> Inputs:
    """Return the inputs of a case's first data set; sequences and missing ones are left out."""
    values = zip(case.model.graph.input, case.data_sets[0][0], strict=False)
    return {info.name: np.asarray(v) for info, v in values if isinstance(v, (np.ndarray, np.generic))}


def write_data(inputs: Inputs, path: Path, *, smallest: float = 1.0) -> None:
    """Write samples as ``.npz``: the stored inputs again and again, floats scaled down to ``smallest``."""
    scales = np.linspace(1.0, smallest, SAMPLES)
    arrays = {
        name: np.stack([(v * s).astype(v.dtype) if v.dtype.kind == "f" else v for s in scales])
        for name, v in inputs.items()
    }
    arrays = {k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def with_constant_weights(case: Any) -> onnx.ModelProto | None:
    """Return the case's model with its weight-like inputs as initializers, None if it has no such inputs."""
    model, values = readable(case.model), stored_inputs(case)
    graph = model.graph
    named = {n.input[i] for n in graph.node for i in WEIGHTS.get(n.op_type, ()) if i < len(n.input)}
    inputs = {info.name: info for info in graph.input}
    names = [name for name in inputs if name in named and name in values]
    if not names or len(names) == len(inputs):
        return None
    for name in names:
        graph.initializer.append(numpy_helper.from_array(values[name], name))
        graph.input.remove(inputs[name])
    return model


def with_room(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with a large unused constant: however little its weights save, the result is smaller."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.append(numpy_helper.from_array(np.zeros(ROOM_BYTES, np.uint8), "unused"))
    return copy


def weight_cases() -> Iterator[tuple[str, onnx.ModelProto, Inputs]]:
    """Yield name, model with constant weights, and remaining inputs of every case that has weights."""
    for name, case in node_cases().items():
        model = with_constant_weights(case)
        if model is not None:
            left = {info.name for info in model.graph.input}
            yield name, model, {k: v for k, v in stored_inputs(case).items() if k in left}
