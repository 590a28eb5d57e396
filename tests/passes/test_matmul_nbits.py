"""Products whose weights are decoded in the runtime's kernel: what is written is the plan, and the runtime runs it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.blockwise import with_form
from qcompiler.decoding import differing_constant
from qcompiler.errors import QCompileError
from qcompiler.lowering import weight_codes
from qcompiler.plan import Precision, QuantSpec, Role
from qcompiler.protocols import MatMulForm
from qcompiler.quant.grid import dequantize
from qcompiler.state import Fact
from tests.compiling import context, lowered, outputs, run_passes, runtime_ops, samples, start
from tests.models import FLOAT, build

make = helper.make_node
SHAPES = [(64, 24), (100, 7), (33, 16)]
"""Whole blocks, and inputs that fill the last block in part, to a half byte too."""


def product(shape=(64, 24), op_type="MatMul", data=(2, 3), bias=False, **attributes):
    """Return a model ``x`` -> ``y`` of one product by a random matrix of (inputs, outputs)."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    stored = np.ascontiguousarray(weight.T) if attributes.get("transB") else weight
    constants = {"w": stored, **({"b": rng.standard_normal(shape[1]).astype(np.float32)} if bias else {})}
    node = make(op_type, ["x", *constants], ["y"], name="node", **attributes)
    dims = data if op_type == "MatMul" else data[-1:]
    return build([node], [("x", FLOAT, [*dims, shape[0]])], [("y", FLOAT, [*dims, shape[1]])], constants)


def planned(proto, bits=4, block=32, level=4, run_bits=None):
    """Return a state whose products are planned blockwise, with scales, and the context."""
    state = start(proto)
    where = context("x86", samples(state.model, 2), (), f"W{bits}A8:uniform")
    form = MatMulForm(Precision.BLOCKWISE, run_bits or min(b for b in (2, 4, 8) if b >= bits), block, level)
    plan = state.plan
    for node in state.model.graph:
        plan = with_form(plan, node.name, form)
    state = run_passes(replace(state, plan=plan), where, "place", "scale-weights")
    return replace(state, facts=state.facts | {Fact.RANGES}), where


def meaning(state, name="w"):
    """Return the weight that a plan stands for."""
    value = state.model.graph.initializers[name]
    entry = state.plan.tensors[name]
    array = value.const_value.numpy()
    return dequantize(weight_codes(array, entry), *entry.grid(array.shape), entry.spec.axis)


def exact(proto, weight, feeds):
    """Return what the model computes with another weight, in float64."""
    found = feeds["x"].astype(np.float64) @ weight
    bias = [t for t in proto.graph.initializer if t.name == "b"]
    return found + np.frombuffer(bias[0].raw_data, np.float32) if bias else found


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_float_kernel_computes_the_plan_exactly(bits, shape):
    proto = product(shape)
    state, where = planned(proto, bits, level=0)
    model = lowered(state, where).model
    assert [n.op_type for n in model.graph][-1] == "MatMulNBits"
    feeds = samples(state.model, 1)[0]
    expected = exact(proto, meaning(state), feeds)
    for optimize in (False, True):
        (found,) = outputs(model, feeds, optimize=optimize)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_integer_kernel_rounds_its_inputs_to_8_bits_a_block(bits):
    proto = product((256, 48))
    state, where = planned(proto, bits)
    feeds = samples(state.model, 1)[0]
    (found,) = outputs(lowered(state, where).model, feeds)
    expected = exact(proto, meaning(state), feeds)
    assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm(attributes, bias):
    proto = product((50, 20), "Gemm", bias=bias, **attributes)
    state, where = planned(proto, level=0)
    assert state.plan.tensors["w"].scale.shape == (20, 2)
    weight = meaning(state)
    feeds = samples(state.model, 1)[0]
    expected = exact(proto, weight.T if attributes else weight, feeds)
    (found,) = outputs(lowered(state, where).model, feeds)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 5])
def test_other_widths_are_stored_packed_and_folded_when_the_session_loads(bits):
    state, where = planned(product((512, 96)), bits)
    model = lowered(state, where).model
    assert max(v.const_value.nbytes for v in model.graph.initializers.values() if v.dtype == ir.DataType.UINT8) == (
        512 * 96 * bits // 8
    )
    assert runtime_ops(model) == ["MatMulNBits"]


def test_four_bits_are_stored_as_the_operator_reads_them():
    state, where = planned(product(), 4)
    model = lowered(state, where).model
    assert [n.op_type for n in model.graph] == ["MatMulNBits"]
    assert len(model.graph[0].inputs) == 3  # no zero points: they are the default


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_of_blocks(bits, shape):
    proto = product(shape)
    state, where = planned(proto, bits, level=0)
    entry = state.plan.tensors["w"]
    rng = np.random.default_rng(1)
    top = 2 ** min(bits, 7)
    zero = rng.integers(0, top, entry.scale.shape).astype(np.int32)
    codes = rng.integers(0, top, shape).astype(np.int8)
    spec = QuantSpec(num_bits=bits, signed=False, axis=1, block_size=entry.spec.block_size)
    shifted = replace(entry, spec=spec, zero_point=zero, codes=codes, levels=None)
    state = replace(state, plan=state.plan.with_tensors(shifted))
    feeds = samples(state.model, 1)[0]
    model = lowered(state, where).model
    assert len(model.graph[0].inputs) == 4
    np.testing.assert_allclose(outputs(model, feeds)[0], exact(proto, meaning(state), feeds), atol=1e-3)


def test_products_that_share_a_weight_share_its_codes():
    rng = np.random.default_rng(0)
    nodes = [make("MatMul", ["x", "w"], ["h"], name="first"), make("MatMul", ["h", "w"], ["y"], name="second")]
    weight = rng.standard_normal((32, 32)).astype(np.float32)
    proto = build(nodes, [("x", FLOAT, [2, 32])], [("y", FLOAT, [2, 32])], {"w": weight})
    state, where = planned(proto)
    graph = lowered(state, where).model.graph
    assert [n.op_type for n in graph] == ["MatMulNBits"] * 2
    assert len(graph.initializers) == 2


def test_the_pipeline_notices_other_codes_scales_and_zero_points():
    state, where = planned(product((64, 24)), 4)
    model = run_passes(state, where, "matmul-nbits").model
    assert differing_constant(state.model, model, state.plan) == ""
    for name, change in {"w_blocks": lambda a: a ^ 1, "w_scale": lambda a: a * np.float32(1.001)}.items():
        copy = model.clone()
        value = copy.graph.initializers[name]
        value.const_value = ir.tensor(change(value.const_value.numpy()))
        assert "'node' does not decode" in differing_constant(state.model, copy, state.plan)


def test_codes_that_the_operator_cannot_hold_are_refused():
    state, where = planned(product(), 8)
    entry = state.plan.tensors["w"]
    wide = replace(entry, spec=replace(entry.spec, num_bits=9))
    state = replace(state, plan=state.plan.with_tensors(wide))
    with pytest.raises(QCompileError, match="weight 'w' has codes from"):
        run_passes(state, where, "matmul-nbits")


def test_a_node_taken_back_to_float_decodes_its_blocks_at_load():
    for shape, attributes in (((100, 7), {}), ((64, 24), {"transB": 1})):
        op_type = "Gemm" if attributes else "MatMul"
        proto = product(shape, op_type, **attributes)
        state, where = planned(proto, 3)
        node = replace(state.plan.nodes["node"], precision=Precision.WEIGHT_ONLY)
        state = replace(state, plan=state.plan.with_nodes(node))
        model = lowered(state, where).model
        feeds = samples(state.model, 1)[0]
        weight = meaning(state)
        expected = exact(proto, weight.T if attributes else weight, feeds)
        np.testing.assert_allclose(outputs(model, feeds)[0], expected, atol=1e-4)
        assert {"Mul", "Cast", "Expand"}.isdisjoint(runtime_ops(model))


def test_blocks_beat_one_scale_for_a_channel_of_uneven_weights():
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((128, 32)) * np.repeat([1, 0.02], 64)[:, None]).astype(np.float32)
    node = make("MatMul", ["x", "w"], ["y"], name="node")
    proto = build([node], [("x", FLOAT, [1, 1, 128])], [("y", FLOAT, [1, 1, 32])], {"w": weight})
    state, where = planned(proto, 4)
    plain = run_passes(start(proto), where, "place", "scale-weights")
    small = slice(64, None)
    errors = [float(np.abs(meaning(s)[small] - weight[small]).mean()) for s in (state, plain)]
    assert errors[0] < errors[1] / 4
    assert state.plan.tensors["w"].role is Role.WEIGHT
