"""Weights stored in integers and decoded when a session loads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import QCompileError
from qcompiler.plan import Role, TensorPlan
from qcompiler.quant.grid import dequantize, quantize
from qcompiler.recipe import MatchRule
from qcompiler.registry import make_pass
from tests.compiling import lowered, outputs, planned, run_passes, runtime_ops, samples, serialized
from tests.golden_text import assert_golden
from tests.models import FLOAT, build, loop_net
from tests.passes.lowering import rounded_plan, sixteenths

make = helper.make_node


def large_branches() -> onnx.ModelProto:
    """An If with a weight in each branch, large enough to be stored in integers."""
    branches = {}
    for seed, name in enumerate(("then_branch", "else_branch")):
        weight = numpy_helper.from_array(sixteenths(20, 12, seed=seed) + np.float32(0.007), f"w{seed}")
        node = make("MatMul", ["x", f"w{seed}"], [f"out{seed}"], name=f"fc{seed}")
        out = helper.make_tensor_value_info(f"out{seed}", FLOAT, [2, 12])
        branches[name] = helper.make_graph([node], name, [], [out], [weight])
    node = make("If", ["flag"], ["y"], name="if", **branches)
    inputs = [("x", FLOAT, [2, 20]), ("flag", TensorProto.BOOL, [])]
    return build([node], inputs, [("y", FLOAT, [2, 12])])


def embedding() -> onnx.ModelProto:
    nodes = [make("Gather", ["table", "ids"], ["e"], name="embed"), make("Softmax", ["e"], ["y"], name="softmax")]
    inputs = [("ids", TensorProto.INT64, [3])]
    return build(nodes, inputs, [("y", FLOAT, [3, 16])], {"table": sixteenths(16, 16) + np.float32(0.007)})


@pytest.mark.parametrize(("name", "proto"), [("embedding", embedding()), ("if", large_branches())])
def test_golden(name, proto):
    state, where = rounded_plan(proto)
    assert_golden(f"pack-weights-{name}", run_passes(state, where, "pack-weights").model)


@pytest.mark.parametrize("proto", [embedding(), large_branches()], ids=["main graph", "branches"])
def test_the_runtime_folds_the_decoding_away(proto):
    state, where = rounded_plan(proto)
    ops = runtime_ops(lowered(state, where).model)
    assert "Cast" not in ops
    assert "Mul" not in ops
    assert "DequantizeLinear" not in ops


def test_the_runtime_computes_with_the_decoded_values():
    proto = large_branches()
    state, where = rounded_plan(proto)
    model = lowered(state, where).model
    feeds = {"x": samples(state.model, 1)[0]["x"]}
    for flag, name in ((True, "w0"), (False, "w1")):
        entry = state.plan.tensors[name]
        weight = sixteenths(20, 12, seed=int(name[1])) + np.float32(0.007)
        codes = quantize(weight, entry.scale, entry.zero_point, (-127, 127), 1)
        decoded = dequantize(codes, entry.scale, entry.zero_point, 1)
        plain = build(
            [make("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, [2, 20])], [("y", FLOAT, [2, 12])], {"w": decoded}
        )
        expected = outputs(plain, feeds)[0]
        assert np.array_equal(outputs(model, {**feeds, "flag": np.asarray(flag)})[0], expected)


def test_the_file_is_smaller():
    state, where = rounded_plan(embedding())
    small = len(serialized(lowered(state, where).model))
    assert small < len(embedding().SerializeToString()) - 400


def test_float16_weights_decode_to_float16():
    table = (sixteenths(32, 32) + np.float32(0.007)).astype(np.float16)
    nodes = [make("Gather", ["table", "ids"], ["y"], name="embed")]
    proto = build(nodes, [("ids", TensorProto.INT64, [3])], [("y", TensorProto.FLOAT16, [3, 32])], {"table": table})
    state, where = rounded_plan(proto)
    model = lowered(state, where).model
    (found,) = outputs(model, {"ids": np.array([1, 5, 31])})
    assert found.dtype == np.float16
    # Half a step of the coarser rows, and the rounding of the product in float16.
    assert np.abs(found.astype(np.float32) - table[[1, 5, 31]]).max() <= 0.0078125 + 2.0**-10


def test_a_node_that_stays_float_keeps_its_float_weight():
    """Two nodes share a table; the user wants one of them in float."""
    nodes = [
        make("Gather", ["table", "ids"], ["a"], name="packed"),
        make("Gather", ["table", "ids"], ["b"], name="exact"),
    ]
    outs = [("a", FLOAT, [3, 16]), ("b", FLOAT, [3, 16])]
    table = sixteenths(16, 16) + np.float32(0.007)
    proto = build(nodes, [("ids", TensorProto.INT64, [3])], outs, {"table": table})
    state, where = rounded_plan(proto, rules=(MatchRule(pattern="^exact$", keep_float=True),))
    packed, exact = outputs(lowered(state, where).model, {"ids": np.array([0, 1, 2])})
    assert np.array_equal(exact, table[:3])
    assert not np.array_equal(packed, table[:3])


def test_weights_of_a_loop_are_packed_in_the_main_graph():
    proto = loop_net()
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(sixteenths(16, 16), "w"))
    for info in (proto.graph.input[0], proto.graph.output[0]):
        info.type.tensor_type.shape.dim[1].dim_value = 16
    for graph in (a.g for a in proto.graph.node[0].attribute if a.name == "body"):
        for info in (graph.input[2], graph.output[1]):
            info.type.tensor_type.shape.dim[1].dim_value = 16
    state, where = rounded_plan(proto)
    result = make_pass("pack-weights").run(state, where)
    assert result.report.changed
    ops = runtime_ops(lowered(state, where).model)
    assert "Cast" not in ops


def test_a_correction_of_the_bias_is_written():
    rng = np.random.default_rng(0)
    node = make("Conv", ["x", "w"], ["y"], name="conv")
    proto = build(
        [node],
        [("x", FLOAT, [1, 8, 4, 4])],
        [("y", FLOAT, [1, 8, 2, 2])],
        {"w": rng.standard_normal((8, 8, 3, 3)).astype(np.float32)},
    )
    state, where = planned(proto, rules=(MatchRule(pattern="conv", scheme="weight_only"),))
    shift = TensorPlan(name="conv:bias", role=Role.BIAS, correction=np.arange(8.0))
    state = replace(state, plan=state.plan.with_tensors(shift))
    model = lowered(state, where).model
    added = next(n for n in model.graph if n.op_type == "Conv").inputs[2].const_value.numpy()
    assert added.tolist() == list(range(8))


def test_the_pipeline_notices_a_wrong_scale(monkeypatch):
    from qcompiler.passes import pack_weights

    state, where = rounded_plan(embedding())
    right = pack_weights.along
    monkeypatch.setattr(pack_weights, "along", lambda scale, axis, rank: right(scale[::-1], axis, rank))
    with pytest.raises(QCompileError, match="'table' of node 'embed' does not decode"):
        lowered(state, where)


def test_nothing_to_pack_is_nothing_written():
    proto = build([make("Relu", ["x"], ["y"])], [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    state, where = rounded_plan(proto)
    assert run_passes(state, where, "pack-weights").model is state.model


@pytest.mark.parametrize("bits", ["W8A8", "W4A8:uniform"])
def test_a_table_that_the_output_is_multiplied_by_is_stored_once(bits):
    table = sixteenths(64, 32) + np.float32(0.007)
    nodes = [
        make("Gather", ["table", "ids"], ["e"], name="embed"),
        make("Relu", ["e"], ["r"], name="relu"),
        make("Gemm", ["r", "table"], ["y"], name="project", transB=1),
    ]
    proto = build(nodes, [("ids", TensorProto.INT64, [3])], [("y", FLOAT, [3, 64])], {"table": table})
    state, where = planned(proto, bits=bits)
    model = lowered(state, where).model
    sizes = [v.const_value.size for v in model.graph.initializers.values() if v.const_value.nbytes >= table.size // 2]
    assert len(sizes) == 1
    codes = [v for v in model.graph if v.op_type in ("Cast", "DequantizeLinear") and "table" in (v.name or "")]
    assert len({id(node.inputs[0]) for node in codes}) == 1
    feeds = {"ids": np.array([0, 5, 63])}
    assert np.allclose(
        outputs(model, feeds)[0], outputs(proto, feeds)[0], atol=0.2 * np.abs(outputs(proto, feeds)[0]).max()
    )
