"""Inputs as the model declares them."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.data import InputSpec, input_specs
from qcompiler.errors import DataError


def model_of(*inputs):
    graph = ir.Graph(list(inputs), [], nodes=[], opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


def value(name, dtype, dims):
    shape = None if dims is None else ir.Shape(dims)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


def test_types_and_dimensions():
    weight = value("w", ir.DataType.FLOAT, [2])
    model = model_of(value("x", ir.DataType.FLOAT16, ["N", None, 3]), value("words", ir.DataType.STRING, []), weight)
    weight.const_value = ir.tensor(np.zeros(2, np.float32), name="w")
    model.graph.register_initializer(weight)
    assert input_specs(model) == (
        InputSpec("x", np.dtype(np.float16), ("N", None, 3)),
        InputSpec("words", np.dtype(object), ()),
    )


def test_inputs_that_cannot_be_fed():
    sequence = ir.Value(name="s", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
    with pytest.raises(DataError, match=r"'s' is .*not a tensor"):
        input_specs(model_of(sequence))
    with pytest.raises(DataError, match="'x' declares no number of axes"):
        input_specs(model_of(value("x", ir.DataType.FLOAT, None)))
