"""Convolutions that read channels by fours: the same answers bit for bit, in the runtime's faster kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from qcompiler.codec.bits import packed_bytes
from qcompiler.errors import QCompileError
from qcompiler.lowering import alignable, aligned_channels, with_aligned_channels
from qcompiler.plan import NodePlan, Precision
from tests.compiling import lowered, outputs, planned, run_passes, runtime_graph, samples
from tests.golden_text import assert_golden
from tests.models import FLOAT, build
from tests.passes.lowering import rounded_plan, sixteenths


def stem(channels=3, written=16, groups=1):
    """One convolution behind an input of few channels, and one that reads what it wrote."""
    constants = {"v": sixteenths(written, channels // groups, 3, 3), "w": sixteenths(4, written, 1, 1, seed=1)}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"], name="stem", pads=[1, 1, 1, 1], group=groups),
        helper.make_node("Conv", ["c", "w"], ["y"], name="head"),
    ]
    return build(nodes, [("x", FLOAT, ["N", channels, 6, 6])], [("y", FLOAT, ["N", 4, 6, 6])], constants)


def aligned(proto, channels=4):
    state, where = rounded_plan(proto)
    return state, replace(state, plan=with_aligned_channels(state.plan, "stem", channels)), where


def test_golden():
    _, state, where = aligned(stem())
    assert_golden("align-channels", run_passes(state, where, "insert-qdq", "align-channels").model)


@pytest.mark.parametrize(("channels", "wanted"), [(1, 4), (3, 4), (6, 8)])
def test_no_bit_of_the_answer_changes(channels, wanted):
    plain, state, where = aligned(stem(channels), wanted)
    feeds = samples(plain.model, 1, free=2)[0]
    (expected,) = outputs(lowered(plain, where).model, feeds)
    model = lowered(state, where).model
    (found,) = outputs(model, feeds)
    assert np.array_equal(found, expected)
    weights = [i for i in runtime_graph(model).initializer if list(i.dims[:2]) == [16, wanted]]
    assert len(weights) == 1, "the runtime's convolution reads as many channels as were planned"


@pytest.mark.parametrize("bits", ["W4A8", "W3A8:uniform"])
def test_no_zeros_are_stored_beside_weights_below_8_bits(bits):
    plain, where = planned(stem(written=64), bits=bits)
    state = replace(plain, plan=with_aligned_channels(plain.plan, "stem", 4))
    feeds = samples(plain.model, 1, free=2)[0]
    (expected,) = outputs(lowered(plain, where).model, feeds)
    model = lowered(state, where).model
    assert np.array_equal(outputs(model, feeds)[0], expected)
    runs = runtime_graph(model)
    assert [list(i.dims) for i in runs.initializer if len(i.dims) == 4][:1] == [[64, 4, 3, 3]]
    assert not {n.op_type for n in runs.node} & {"Pad", "Conv", "Mod"}
    sizes = [v.const_value.nbytes for v in model.graph.initializers.values()]
    assert packed_bytes(64 * 3 * 9, int(bits[1])) in sizes
    assert max(sizes) == packed_bytes(64 * 3 * 9, int(bits[1]))


def test_a_node_that_is_in_float_after_all_is_left_alone():
    _, state, where = aligned(stem())
    plan = state.plan.with_nodes(NodePlan(name="stem", op_type="Conv", precision=Precision.FLOAT))
    state = run_passes(replace(state, plan=plan), where, "insert-qdq")
    assert run_passes(state, where, "align-channels").model is state.model


def test_nothing_planned_is_nothing_changed():
    state, where = rounded_plan(stem())
    state = run_passes(state, where, "insert-qdq")
    assert run_passes(state, where, "align-channels").model is state.model


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((3, 16), {"stem": 4}),
        ((6, 16), {"stem": 8}),
        ((4, 16), {}),  # its channels come by fours already
        ((3, 15), {}),  # too few outputs for that kernel
        ((6, 16, 2), {}),  # groups have a kernel of their own
    ],
)
def test_who_would_be_helped(arguments, expected):
    state, _ = rounded_plan(stem(*arguments) if len(arguments) < 3 else stem(6, 16, groups=2))
    assert alignable(state.model, state.plan) == expected


def test_a_plan_that_holds_no_number_is_refused():
    state, _ = rounded_plan(stem())
    plan = state.plan.with_choice("input channels of stem", "many")
    with pytest.raises(QCompileError, match="must be a number"):
        aligned_channels(plan, "stem")
