"""float16 models computed in float32."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.compiling import context, outputs, run_passes, samples, start
from tests.golden_text import assert_golden
from tests.models import conv_net
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


def test_a_float32_model_is_returned_as_it_is():
    before, after = widened(conv_net())
    assert after.model is before.model
