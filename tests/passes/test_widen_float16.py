"""float16 models computed in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiling import context, outputs, run_passes, samples, start
from tests.golden_text import assert_golden
from tests.models import FLOAT, branch_net, build, conv_net, loop_net
from tests.passes.states import half_net

HALF_EPS = float(np.finfo(np.float16).eps)


def widened(proto):
    state = start(proto)
    return state, run_passes(state, context(data=samples(state.model, 1)), "widen-float16")


def test_golden():
    before, after = widened(half_net())
    assert_golden("widen-float16", before.model, after.model)


def test_ends_keep_their_type_and_everything_between_is_single():
    _, after = widened(half_net())
    graph = after.model.graph
    kinds = {v.dtype.value for v in (*graph.inputs, *graph.outputs)}
    assert kinds == {TensorProto.FLOAT16}
    assert {v.dtype.value for v in graph.initializers.values()} == {TensorProto.FLOAT}
    assert [n.op_type for n in graph] == ["Cast", "Conv", "Relu", "Cast"]


def test_outputs_are_those_of_the_half_model():
    before, after = widened(half_net())
    feeds = samples(before.model, 1)[0]
    (a,), (b,) = outputs(before.model, feeds), outputs(after.model, feeds)
    assert b.dtype == np.float16
    # The half model rounds each output once more often, and ONNX Runtime computes it in float32 itself.
    assert np.abs(a.astype(np.float32) - b.astype(np.float32)).max() <= 2 * HALF_EPS * np.abs(a).max()


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 model as a float16 one, inner graphs included."""
    graphs = [proto.graph]
    for graph in graphs:
        graphs += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type == TensorProto.FLOAT:
                info.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


@pytest.mark.parametrize("net", [loop_net, branch_net])
def test_inner_graphs_are_widened_too(net):
    before, after = widened(halved(net()))
    for feeds in (samples(before.model, 1, seed=s)[0] for s in range(2)):
        (a,), (b,) = outputs(before.model, feeds), outputs(after.model, feeds)
        assert b.dtype == np.float16
        # The half model rounds after each of its few steps.
        assert np.abs(a.astype(np.float32) - b.astype(np.float32)).max() <= 8 * HALF_EPS * max(np.abs(a).max(), 1)
    inner = [n for n in after.model.graph.all_nodes() if n.op_type == "MatMul"]
    assert {v.dtype.value for n in inner for v in n.inputs} == {TensorProto.FLOAT}


def test_operators_that_are_told_a_type():
    nodes = [
        helper.make_node("EyeLike", ["x"], ["e"], name="eye", dtype=TensorProto.FLOAT16),
        helper.make_node("Cast", ["x"], ["c"], name="cast", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["c", "w"], ["m"], name="fc"),
        helper.make_node("Add", ["e", "m"], ["y"], name="add"),
    ]
    constants = {"w": np.eye(3, dtype=np.float16)}
    state = start(build(nodes, [("x", FLOAT, [3, 3])], [("y", TensorProto.FLOAT16, [3, 3])], constants))
    after = run_passes(state, context(), "widen-float16", check=False).model
    x = np.ones((3, 3), np.float32)
    np.testing.assert_array_equal(outputs(after, {"x": x})[0], np.eye(3) + 1)
    assert [v.dtype.value for v in after.graph.outputs] == [TensorProto.FLOAT16]


def test_a_float32_model_is_returned_as_it_is():
    before, after = widened(conv_net())
    assert after.model is before.model
