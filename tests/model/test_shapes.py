"""Computed integers: which entries are known, and that nothing is guessed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from qcompiler.model.shapes import partly_known, whole
from tests.compiling import start
from tests.models import FLOAT, build

BIG = 9223372036854775807


def computed(*steps, shape=("batch", 5, 12)):
    """Return the value that operators (type, operands, attributes) make of the shape of an input."""
    constants, nodes = {}, [helper.make_node("Shape", ["x"], ["s"], name="s")]
    last = "s"
    for number, (op_type, operands, attributes) in enumerate(steps):
        names = [last]
        for place, operand in enumerate(operands):
            names.append(f"c{number}_{place}")
            constants[names[-1]] = np.asarray(operand, np.int64)
        last = f"v{number}"
        nodes.append(helper.make_node(op_type, names, [last], name=last, **attributes))
    outputs = [(last, TensorProto.INT64, None)]
    model = start(build(nodes, [("x", FLOAT, list(shape))], outputs, constants)).model
    return next(v for n in model.graph for v in n.outputs if v.name == last)


@pytest.mark.parametrize(
    ("steps", "entries"),
    [
        ([], [None, 5, 12]),
        ([("Slice", ([1], [BIG]), {})], [5, 12]),
        ([("Slice", ([0], [-1]), {})], [None, 5]),
        ([("Slice", ([0], [3], [0], [2]), {})], [None] * 3),
        ([("Gather", ([-1],), {})], [12]),
        ([("Gather", ([-1],), {}), ("Add", ([2],), {}), ("Div", ([3],), {}), ("Mul", ([2],), {})], [8]),
        ([("Mod", ([5],), {})], [None, 0, 2]),
        ([("Div", ([0],), {})], [None] * 3),
        ([("Sub", ([1, 1, 1],), {}), ("Cast", (), {"to": TensorProto.INT64})], [None, 4, 11]),
        ([("Gather", ([2],), {}), ("Concat", ([3, -1],), {"axis": 0})], [12, 3, -1]),
    ],
)
def test_entries(steps, entries):
    value = computed(*steps)
    found = partly_known(value)
    if entries == [None] * 3:
        assert found is None or found == entries
    else:
        assert found == entries
    known = whole(value)
    assert known is None if None in entries else known.tolist() == entries


def test_a_shape_of_unknown_rank_has_a_last_entry_and_first_ones():
    nodes = [
        helper.make_node("Reshape", ["x", "to"], ["y"], name="y"),
        helper.make_node("Shape", ["y"], ["s"], name="s"),
        helper.make_node("Slice", ["s", "m1", "end"], ["last"], name="last"),
        helper.make_node("Slice", ["s", "zero", "two"], ["first"], name="first"),
        helper.make_node("Slice", ["s", "two", "m1"], ["middle"], name="middle"),
    ]
    constants = {"m1": [-1], "end": [BIG], "zero": [0], "two": [2]}
    inputs = [("x", FLOAT, ["n"]), ("to", TensorProto.INT64, ["rank"])]
    outputs = [(name, TensorProto.INT64, None) for name in ("last", "first", "middle")]
    proto = build(nodes, inputs, outputs, {k: np.asarray(v, np.int64) for k, v in constants.items()})
    values = {v.name: v for n in start(proto).model.graph for v in n.outputs}
    assert partly_known(values["last"]) == [None]
    assert partly_known(values["first"]) == [None, None]
    assert partly_known(values["middle"]) is None


def test_bounds_of_masks_and_large_constants_are_no_entries():
    constants = {"low": np.array([-np.inf, 2.0], np.float32), "many": np.zeros(5000, np.int64)}
    nodes = [
        helper.make_node("Identity", ["low"], ["mask"], name="mask"),
        helper.make_node("Identity", ["many"], ["zeros"], name="zeros"),
        helper.make_node("Identity", ["x"], ["y"], name="y"),
    ]
    outputs = [("mask", FLOAT, [2]), ("zeros", TensorProto.INT64, [5000]), ("y", FLOAT, ["n"])]
    model = start(build(nodes, [("x", FLOAT, ["n"])], outputs, constants)).model
    values = {v.name: v for n in model.graph for v in n.outputs}
    assert partly_known(values["mask"]) == [None, 2]
    assert whole(values["zeros"]) is None
