"""Trial runs: what a state would reach if it were finished now."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.plan import Role
from qcompiler.trials.trial import Trial, layer_levels, measured_values
from tests.compiling import Fixed, context, lowered, outputs, planned, run_passes, samples, start
from tests.models import FLOAT, build, conv_net, dense_net


def sqnr(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    a, b = (np.concatenate([x.reshape(-1) for x in part]).astype(np.float64) for part in (expected, found))
    return float(10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2)))


def test_the_level_is_that_of_the_compiled_model():
    state, where = planned(conv_net(batch_norm=False))
    accepted = samples(state.model, 4, seed=5)
    trial = Trial(state.model, where.target, accepted, where)
    model = lowered(run_passes(state, where, "correct-bias"), where).model
    expected = [outputs(state.model, accepted[i])[0] for i in range(4)]
    found = [outputs(model, accepted[i])[0] for i in range(4)]
    assert trial(state) == pytest.approx(sqnr(expected, found), abs=1e-3)


def test_missing_facts_are_completed():
    bare = start(conv_net(batch_norm=False))
    where = context(data=samples(bare.model, 12))
    trial = Trial(bare.model, where.target, samples(bare.model, 2, seed=5), where)
    assert 15 < trial(bare) < 80


def test_a_worse_state_has_a_lower_level():
    state, where = planned(conv_net(batch_norm=False))
    trial = Trial(state.model, where.target, samples(state.model, 2, seed=5), where)
    coarse = [
        replace(t, scale=t.scale * np.float32(4))
        for t in state.plan.tensors.values()
        if t.role is Role.ACTIVATION and t.scale is not None
    ]
    assert trial(replace(state, plan=state.plan.with_tensors(*coarse))) < trial(state) - 6


def softmax_net() -> onnx.ModelProto:
    proto = dense_net()
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["p"], name="softmax"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("p", FLOAT, ["N", 4]))
    return proto


def shifted(proto: onnx.ModelProto, offset: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    bias = next(i for i in changed.graph.initializer if i.name == "b2")
    values = onnx.numpy_helper.to_array(bias) + np.float32(offset)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    return changed


def test_what_all_scores_have_in_common_counts_in_the_level_alone():
    state, where = planned(softmax_net())
    trial = Trial(state.model, where.target, samples(state.model, 4, seed=5), where)
    moved = replace(state, model=start(shifted(softmax_net(), 0.5)).model)
    assert trial(moved) < trial(state) - 3
    assert trial.closeness(moved) == pytest.approx(trial.closeness(state), abs=3.0)
    coarse = [
        replace(t, scale=t.scale * np.float32(8))
        for t in state.plan.tensors.values()
        if t.role is Role.ACTIVATION and t.scale is not None
    ]
    assert trial.closeness(replace(state, plan=state.plan.with_tensors(*coarse))) < trial.closeness(state) - 3


def test_closeness_is_that_of_a_place_however_many_a_sample_has():
    weight = np.random.default_rng(2).standard_normal((8, 4)).astype(np.float32)
    levels = []
    for places in (1, 5):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
            helper.make_node("Softmax", ["y"], ["p"], name="softmax", axis=-1),
        ]
        state = start(build(nodes, [("x", FLOAT, [1, places, 8])], [("p", FLOAT, [1, places, 4])], {"w": weight}))
        row = np.random.default_rng(3).standard_normal((1, 1, 8)).astype(np.float32)
        repeated = Fixed([{"x": np.repeat(row, places, axis=1)}])
        trial = Trial(state.model, context().target, repeated, context(data=repeated))
        coarse = start(build(nodes, [("x", FLOAT, [1, places, 8])], [("p", FLOAT, [1, places, 4])], {"w": weight * 2}))
        levels.append(trial.closeness(coarse))
    assert levels[0] == pytest.approx(levels[1], abs=0.2)


def test_logits_are_compared_where_the_output_is_probabilities():
    state, where = planned(softmax_net())
    assert measured_values(state.model) == ["y"]
    assert measured_values(lowered(state, where).model) == ["y"]
    assert measured_values(start(dense_net()).model) == ["y"]


def test_a_quantized_gate_that_is_an_output_is_compared_before_it():
    rng = np.random.default_rng(0)
    constants = {n: rng.standard_normal((8, 8, 1, 1)).astype(np.float32) for n in "wv"}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
        helper.make_node("Sigmoid", ["c"], ["s"], name="gate"),
        helper.make_node("Conv", ["s", "v"], ["y"], name="last"),
    ]
    outs = [("s", FLOAT, [1, 8, 4, 4]), ("y", FLOAT, [1, 8, 4, 4])]
    state, where = planned(build(nodes, [("x", FLOAT, [1, 8, 4, 4])], outs, constants))
    assert measured_values(state.model) == ["c", "y"]
    lower = lowered(state, where).model
    assert measured_values(lower)[0] in ("c", "c_dq")
    trial = Trial(state.model, where.target, samples(state.model, 2), where)
    assert trial(state) > 20


def test_levels_of_inner_values():
    state, where = planned(conv_net(batch_norm=False))
    model = lowered(state, where).model
    names = [t.name for t in state.plan.tensors.values() if t.role is Role.ACTIVATION]
    found = layer_levels(state.model, model, names, samples(state.model, 2), 1)
    assert {"a1", "d6", "p", "s", "g"} <= set(found)
    assert all(15 < level < 80 for level in found.values())


def test_outputs_that_are_no_floats_are_left_out():
    nodes = [
        helper.make_node("ArgMax", ["x"], ["i"], name="argmax"),
        helper.make_node("Relu", ["x"], ["y"], name="relu"),
    ]
    outs = [("i", onnx.TensorProto.INT64, [1, 4]), ("y", FLOAT, [2, 4])]
    model = start(build(nodes, [("x", FLOAT, [2, 4])], outs)).model
    assert measured_values(model) == ["y"]


def test_an_exact_result_has_a_finite_level():
    model = start(build([helper.make_node("Relu", ["x"], ["y"])], [("x", FLOAT, [2])], [("y", FLOAT, [2])]))
    where = context(data=samples(model.model, 2))
    data = Fixed([{"x": np.ones(2, np.float32)}])
    assert Trial(model.model, where.target, data, where)(model) == 200.0
