"""Fingerprints change with what they are about and with nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.model import edit
from qcompiler.model.fingerprint import file_sha256, files_sha256, structure_fingerprint
from qcompiler.model.load import load_model
from tests import models


def test_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(bytes(3 * 2**20 + 1))
    second.write_bytes(b"end")
    assert file_sha256(first) == hashlib.sha256(first.read_bytes()).hexdigest()
    assert files_sha256([first, second]) == hashlib.sha256(first.read_bytes() + b"end").hexdigest()


def test_clone_has_the_fingerprint_of_the_original(tmp_path: Path) -> None:
    model = load_model(models.save(models.branch_net(), tmp_path)).model
    assert structure_fingerprint(edit.clone(model)) == structure_fingerprint(model)


def inner(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph.all_nodes() if n.op_type == "MatMul")


def replace_by_equal(model: ir.Model) -> None:
    value = model.graph.initializers["shared"]
    array = edit.constant_of(value)
    assert array is not None
    edit.replace_constant(value, array.copy())


CHANGES: dict[str, Callable[[ir.Model], object]] = {
    "node name": lambda m: setattr(inner(m), "name", "other"),
    "operator": lambda m: setattr(inner(m), "op_type", "Gemm"),
    "domain": lambda m: setattr(inner(m), "domain", "other"),
    "attribute": lambda m: inner(m).attributes.add(ir.AttrInt64("axis", 1)),
    "input": lambda m: inner(m).replace_input_with(0, m.graph.inputs[1]),
    "value name": lambda m: setattr(inner(m).outputs[0], "name", "other"),
    "input shape": lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape([1, 8])),
    "input type": lambda m: setattr(m.graph.inputs[0], "type", ir.TensorType(ir.DataType.FLOAT16)),
    "output": lambda m: m.graph.outputs.append(m.graph.inputs[0]),
    "equal constant": replace_by_equal,
    "new constant": lambda m: edit.add_initializer(m.graph, "new", np.zeros(1)),
    "opset": lambda m: m.opset_imports.update({"": 18}),
    "metadata": lambda m: m.metadata_props.update({"a": "b"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_shows(tmp_path: Path, change: str) -> None:
    model = load_model(models.save(models.branch_net(), tmp_path)).model
    before = structure_fingerprint(model)
    assert structure_fingerprint(model) == before
    CHANGES[change](model)
    assert structure_fingerprint(model) != before


def test_tensor_attribute_shows(tmp_path: Path) -> None:
    node = models.helper.make_node(
        "ConstantOfShape", ["x"], ["y"], value=models.numpy_helper.from_array(np.ones(1, np.float32))
    )
    info = ("x", models.TensorProto.INT64, [2]), ("y", models.FLOAT, None)
    model = load_model(models.save(models.build([node], [info[0]], [info[1]]), tmp_path)).model
    before = structure_fingerprint(model)
    model.graph[0].attributes.add(ir.AttrTensor("value", ir.tensor(np.ones(1, np.float32))))
    assert structure_fingerprint(model) != before
