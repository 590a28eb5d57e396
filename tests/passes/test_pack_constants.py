"""Float constants stored without loss in fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from qcompiler.registry import make_pass
from tests.compiling import outputs, run_passes, runtime_ops, serialized
from tests.golden_text import assert_golden
from tests.models import FLOAT, build
from tests.passes.lowering import rounded_plan
from tests.passes.states import table_net

make = helper.make_node


def adds(*tables: np.ndarray):
    """Add constants of one shape to ``x``, one after the other."""
    names = [f"t{i}" for i in range(len(tables))]
    values = ["x", *(f"v{i}" for i in range(len(tables) - 1)), "y"]
    nodes = [make("Add", [values[i], n], [values[i + 1]], name=f"add{i}") for i, n in enumerate(names)]
    shape = tables[0].shape
    return build(nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], dict(zip(names, tables, strict=True)))


def pack(proto):
    state, where = rounded_plan(proto)
    result = make_pass("pack-constants").run(state, where)
    run_passes(state, where, "pack-constants")
    return state, result


def test_golden():
    state, result = pack(table_net())
    assert_golden("pack-constants", state.model, result.state.model)


def test_every_bit_comes_back():
    bits = np.array([0, 0x80000000, 0x7FC00000, 0xFFC00001, 0x7F800000, 0xFF800000, 1, 0x3F800000], np.uint32)
    table = np.resize(bits, (32, 32)).view(np.float32)
    proto = build(
        [make("Transpose", ["t"], ["y"], name="turn", perm=[1, 0])], [], [("y", FLOAT, [32, 32])], {"t": table}
    )
    _, result = pack(proto)
    assert result.report.changed
    for optimize in (False, True):
        (found,) = outputs(result.state.model, {}, optimize=optimize)
        assert np.array_equal(np.ascontiguousarray(found.T).view(np.uint32), table.view(np.uint32))


def test_the_runtime_folds_the_palette_away():
    _, result = pack(table_net())
    ops = runtime_ops(result.state.model)
    assert "Gather" not in ops
    assert "Cast" not in ops


def test_it_folds_inside_branches_too():
    table = np.resize(np.arange(4, dtype=np.float32), (32, 32))
    branches = {}
    for name, op in (("then_branch", "Add"), ("else_branch", "Mul")):
        out = helper.make_tensor_value_info(name, FLOAT, [32, 32])
        branches[name] = helper.make_graph([make(op, ["x", "t"], [name], name=op)], name, [], [out])
    node = make("If", ["flag"], ["y"], name="if", **branches)
    inputs = [("x", FLOAT, [32, 32]), ("flag", TensorProto.BOOL, [])]
    proto = build([node], inputs, [("y", FLOAT, [32, 32])], {"t": table})
    _, result = pack(proto)
    assert result.report.changed
    assert "Gather" not in runtime_ops(result.state.model)


def test_the_file_shrinks_by_what_the_report_says_at_least():
    state, result = pack(table_net())
    saved = {m.name: m.value for m in result.report.metrics}["saved"]
    assert saved > 0
    assert len(serialized(state.model)) - len(serialized(result.state.model)) >= saved


@pytest.mark.parametrize(
    "table",
    [
        np.arange(256, dtype=np.float32).reshape(16, 16),
        np.arange(1024, dtype=np.float32).reshape(32, 32),
        np.zeros((4, 4), np.float32),
    ],
    ids=["a palette as long as the table", "too many values", "too small"],
)
def test_what_would_not_shrink_is_left_alone(table):
    state, result = pack(adds(table))
    assert not result.report.changed
    assert result.state.model is state.model


def test_equal_constants_are_stored_once():
    many = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    _, result = pack(adds(many, many.copy(), many.copy()))
    assert len(result.state.model.graph.initializers) == 1
    assert {m.name: m.value for m in result.report.metrics}["merged"] == 2


def test_constants_that_are_equal_in_value_but_not_in_bits_stay_apart():
    plus = np.resize(np.array([0.0, 1.0], np.float32), (32, 32))
    minus = np.resize(np.array([-0.0, 1.0], np.float32), (32, 32))
    _, result = pack(adds(plus, minus))
    assert {m.name: m.value for m in result.report.metrics}["merged"] == 0


def test_outputs_and_other_types_are_left_alone():
    table = np.zeros((32, 32))
    proto = build(
        [make("Add", ["x", "t"], ["y"])],
        [("x", TensorProto.DOUBLE, [32, 32])],
        [("y", TensorProto.DOUBLE, [32, 32])],
        {"t": table},
    )
    assert not pack(proto)[1].report.changed
