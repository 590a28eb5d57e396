"""Every operator that runs in PyTorch, in every test that the onnx package has of it, against ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

pytest.importorskip("torch")

import torch

from qcompiler.errors import ModelError
from qcompiler.executor.executor import TorchExecutor
from qcompiler.executor.operators import HOST_INPUTS, OPERATORS
from tests import models
from tests.robustness.node_models import Inputs, node_cases, readable, stored_inputs
from tests.tolerances import same_operator

LEFT_OUT = {"uint64", "str", "object", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"}
"""Types that NumPy hands over in no form that PyTorch takes."""


def holds_graphs(model: onnx.ModelProto) -> bool:
    return any(a.type == onnx.AttributeProto.GRAPH for n in model.graph.node for a in n.attribute)


def cases() -> Iterator[tuple[str, onnx.ModelProto, Inputs, list[Any]]]:
    """Yield name, model, inputs and ONNX Runtime's outputs of every test with a native operator that it runs."""
    for name, case in node_cases().items():
        model, inputs = readable(case.model), stored_inputs(case)
        if not {n.op_type for n in model.graph.node} & set(OPERATORS) or holds_graphs(model):
            continue
        if len(inputs) < len(model.graph.input) or any(v.dtype.name in LEFT_OUT for v in inputs.values()):
            continue
        if any(v.dtype == np.ulonglong for v in inputs.values()):
            continue
        try:
            expected = models.run(model, inputs)
        except Exception:
            continue
        if all(isinstance(v, np.ndarray | np.generic) and np.asarray(v).dtype.name not in LEFT_OUT for v in expected):
            yield name, model, inputs, [np.asarray(v) for v in expected]


def difference(expected: np.ndarray, found: np.ndarray) -> str:
    """Return what is wrong with an output, "" if nothing is."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{found.dtype}{found.shape} instead of {expected.dtype}{expected.shape}"
    if expected.dtype.kind != "f":
        return "" if np.array_equal(expected, found) else f"{found} instead of {expected}"
    limit = same_operator(expected)
    close = np.isclose(found.astype(np.float64), expected.astype(np.float64), rtol=0.0, atol=limit, equal_nan=True)
    return "" if close.all() else f"off by more than {limit}"


def run_torch(model: onnx.ModelProto, inputs: Inputs) -> tuple[TorchExecutor, list[np.ndarray]]:
    executor = TorchExecutor(ir.from_proto(model))
    with torch.no_grad():
        found = executor.run({name: torch.tensor(value) for name, value in inputs.items()})
    return executor, [found[name].numpy() for name in executor.outputs]


@pytest.mark.slow
def test_every_operator_test_of_onnx():
    wrong, native, total = dict[str, str](), Counter[str](), 0
    for name, model, inputs, expected in cases():
        executor, found = run_torch(model, inputs)
        native.update(s.op_type for s in executor.steps if s.native)
        total += 1
        problems = [difference(a, b) for a, b in zip(expected, found, strict=True)]
        if any(problems):
            wrong[name] = next(p for p in problems if p)
    assert wrong == {}
    assert total > 1000
    assert set(OPERATORS) <= set(native)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode):
    node = helper.make_node("Upsample", ["x", "scales"], ["y"], mode=mode)
    shape = ("x", models.FLOAT, [1, 2, 3, 4])
    constants = {"scales": np.array([1, 1, 2, 3], np.float32)}
    model = models.build([node], [shape], [("y", models.FLOAT, None)], constants, opset=9)
    inputs = models.random_inputs(model)
    executor, found = run_torch(model, inputs)
    assert executor.fallbacks == {}
    assert difference(models.run(model, inputs)[0], found[0]) == ""


OLD_FORMS = {
    "softmax of opset 11 joins axes": (11, "Softmax", ["x"], {"axis": 1}, {}),
    "log-softmax of opset 11 joins axes": (11, "LogSoftmax", ["x"], {"axis": 2}, {}),
    "clip with attributes": (10, "Clip", ["x"], {"min": -0.5, "max": 0.25}, {}),
    "clip with one attribute": (10, "Clip", ["x"], {"max": 0.25}, {}),
    "pad with attributes": (10, "Pad", ["x"], {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 3.0}, {}),
    "pad that mirrors": (10, "Pad", ["x"], {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "mode": "reflect"}, {}),
    "slice with attributes": (9, "Slice", ["x"], {"starts": [1, -3], "ends": [3, 9], "axes": [1, 3]}, {}),
    "squeeze with an attribute": (11, "Squeeze", ["x"], {"axes": [0]}, {}),
    "unsqueeze with an attribute": (11, "Unsqueeze", ["x"], {"axes": [0, 5]}, {}),
    "split with an attribute": (11, "Split", ["x"], {"axis": 1, "split": [3]}, {}),
    "sum with an attribute": (11, "ReduceSum", ["x"], {"axes": [1, -1], "keepdims": 0}, {}),
    "mean of everything": (11, "ReduceMean", ["x"], {}, {}),
    "resize of opset 10": (10, "Resize", ["x", "s"], {"mode": "linear"}, {"s": np.array([1, 1, 2, 2], np.float32)}),
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_forms_of_older_opsets(form):
    opset, op_type, names, attributes, constants = OLD_FORMS[form]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    shape = ("x", models.FLOAT, [1, 3, 4, 5])
    model = models.build([node], [shape], [("y", models.FLOAT, None)], constants, opset=opset)
    inputs = models.random_inputs(model)
    executor, found = run_torch(model, inputs)
    assert executor.fallbacks == {}
    assert difference(models.run(model, inputs)[0], found[0]) == ""


PADDED = {"auto_pad": ["SAME_UPPER", "SAME_LOWER", "VALID"], "pads": [[1, 0, 0, 1], [0, 1, 2, 1]]}
PADDINGS = [{name: value} for name, values in PADDED.items() for value in values]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("op_type", ["Conv", "MaxPool", "AveragePool"])
def test_padding_on_one_side(op_type, padding):
    attributes = {"kernel_shape": [3, 2], "strides": [2, 1], **padding}
    constants = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32)}
    names = ["x", "w"] if op_type == "Conv" else ["x"]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    shape = ("x", models.FLOAT, [2, 3, 8, 7])
    kept = constants if op_type == "Conv" else {}
    model = models.build([node], [shape], [("y", models.FLOAT, None)], kept)
    inputs = models.random_inputs(model)
    executor, found = run_torch(model, inputs)
    assert executor.fallbacks == {}
    assert difference(models.run(model, inputs)[0], found[0]) == ""


def test_a_wrong_value_is_found():
    expected = np.ones((2, 3), np.float32)
    assert difference(expected, expected + np.float32(1e-4))
    assert difference(expected, expected.astype(np.float64))
    assert difference(expected, expected[:1])
    assert difference(np.arange(3), np.array([0, 1, 3]))
    assert difference(expected, np.full_like(expected, np.nan))


def test_host_inputs_are_of_native_operators():
    assert set(HOST_INPUTS) <= set(OPERATORS)


def test_graphs_inside_nodes_are_refused_in_one_line():
    with pytest.raises(ModelError, match=r"^If 'if' holds graphs .*; compile with -O1$"):
        TorchExecutor(ir.from_proto(models.branch_net()))
    with pytest.raises(ModelError, match=r"^Loop 'loop' holds graphs"):
        TorchExecutor(ir.from_proto(models.loop_net()))
