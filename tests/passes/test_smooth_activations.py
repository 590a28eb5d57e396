"""Factors move between activations and weights: the float model stays the same, rounded products get better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from qcompiler.plan import Role
from qcompiler.quant.smoothing import product_level, smoothing_factors
from qcompiler.recipe import MatchRule
from tests.compiling import context, outputs, run_passes, samples, start
from tests.models import FLOAT, build
from tests.passes.states import token_outlier_net

make = helper.make_node


def residual_net():
    """Scale and bias written out, and a residual branch that reads their result too."""
    proto = token_outlier_net()
    constants = {t.name: np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in proto.graph.initializer}
    square = np.random.default_rng(2).standard_normal((32, 32)).astype(np.float32)
    nodes = [
        make("Mul", ["x", "scale"], ["s"], name="scaled"),
        make("Add", ["s", "bias"], ["n"], name="shifted"),
        make("MatMul", ["n", "v"], ["m"], name="product"),
        make("Add", ["n", "m"], ["y"], name="residual"),
    ]
    constants = {"scale": constants["scale"], "bias": constants["bias"], "v": square}
    return build(nodes, [("x", FLOAT, [1, 5, 32])], [("y", FLOAT, [1, 5, 32])], constants)


def written_out_net():
    """Scale and bias as Mul and Add, as older exporters write a normalization."""
    proto = residual_net()
    nodes = [*list(proto.graph.node)[:2], make("MatMul", ["n", "v"], ["y"], name="product")]
    constants = {t.name: np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in proto.graph.initializer}
    return build(nodes, [("x", FLOAT, [1, 5, 32])], [("y", FLOAT, [1, 5, 32])], constants)


def smoothed(proto, rules=(), data=8):
    state = start(proto)
    where = context("x86", samples(state.model, data) if data else None, rules)
    return state, run_passes(state, where, "smooth-activations")


@pytest.mark.parametrize(
    "proto", [token_outlier_net(), residual_net(), written_out_net()], ids=["ln", "residual", "mul"]
)
def test_the_float_model_stays_the_same(proto):
    state, after = smoothed(proto)
    assert after.model is not state.model
    feeds = samples(state.model, 1, seed=5)[0]
    for expected, found in zip(outputs(proto, feeds), outputs(after.model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("proto", [token_outlier_net(), written_out_net()], ids=["ln", "mul"])
def test_a_normalization_that_only_products_read_takes_the_factors(proto):
    state, after = smoothed(proto)
    assert len(after.model.graph) == len(state.model.graph)
    before, changed = (m.graph.initializers["scale"].const_value.numpy() for m in (state.model, after.model))
    assert changed[3] < before[3] / 3


def test_a_value_with_other_readers_is_multiplied_for_its_products_alone():
    state, after = smoothed(residual_net())
    assert [n.op_type for n in after.model.graph] == ["Mul", "Add", "Mul", "MatMul", "Add"]
    assert after.model.graph.initializers["scale"].const_value is state.model.graph.initializers["scale"].const_value


def test_rounded_products_get_better():
    state, after = smoothed(token_outlier_net())
    (entry,) = [t for t in after.plan.tensors.values() if t.role is Role.FACTORS]
    assert entry.name == "n:smoothing"
    assert entry.correction[3] > 3
    feeds = samples(state.model, 4, seed=5)
    data = [outputs(_exposed(), feeds[i])[0].reshape(-1, 32) for i in range(4)]
    weights = [state.model.graph.initializers[n].const_value.numpy() for n in ("v", "w")]
    plain, better = (product_level(data, weights, f, 8) for f in (None, entry.correction))
    assert better > plain + 3


def _exposed():
    proto = token_outlier_net()
    del proto.graph.node[1:]
    del proto.graph.output[1:]
    proto.graph.output[0].name = "n"
    proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 32
    return proto


def test_nothing_is_done_where_it_does_not_help():
    proto = token_outlier_net()
    for tensor in proto.graph.initializer:
        if tensor.name == "scale":
            tensor.raw_data = np.ones(32, np.float32).tobytes()
    state, after = smoothed(proto)
    assert after.model is state.model


def test_nothing_is_done_without_samples_or_where_products_stay_in_float():
    for rules, data in (((), 0), ((MatchRule(pattern="left|right", keep_float=True),), 8)):
        state, after = smoothed(token_outlier_net(), rules, data)
        assert after.model is state.model


def test_it_is_taken_back_where_the_whole_model_gains_nothing():
    state = start(token_outlier_net())
    where = replace(context("x86", samples(state.model, 8)), trial=lambda _: 20.0)
    assert run_passes(state, where, "smooth-activations").model is state.model


def test_recorded_factors_are_repeated():
    state, after = smoothed(token_outlier_net())
    again = run_passes(replace(state, plan=after.plan), context("x86", None), "smooth-activations")
    for name in ("v", "scale"):
        found, expected = (s.model.graph.initializers[name].const_value.numpy() for s in (again, after))
        np.testing.assert_array_equal(found, expected)


def test_a_weight_that_others_read_keeps_its_values():
    proto = token_outlier_net()
    proto.graph.node[2].input[1] = "v"
    state, after = smoothed(proto)
    assert after.model is state.model


def test_factors_by_the_formula():
    peak, weight = np.array([1.0, 100.0, 0.0, 4.0]), np.array([1.0, 1.0, 1.0, 4.0])
    found = smoothing_factors(peak, weight, 0.5)
    np.testing.assert_allclose(found[1] / found[0], 10)
    np.testing.assert_allclose(found[3], found[0])
    assert found[2] == 1
    np.testing.assert_allclose(np.log(found[[0, 1, 3]]).sum(), 0, atol=1e-12)
