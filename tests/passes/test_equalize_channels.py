"""Equalization: equivalent graphs with calmer channels, and where it must not go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.plan import Role
from qcompiler.registry import make_pass
from tests.compiling import context, outputs, run_passes, samples, start
from tests.golden_text import assert_golden
from tests.models import FLOAT, build
from tests.passes.states import uneven_net
from tests.tolerances import folded

make = helper.make_node


def uneven(rng: np.random.Generator, out: int, inputs: int, *kernel: int) -> np.ndarray:
    weight = rng.standard_normal((out, inputs, *kernel)).astype(np.float32)
    spread = np.resize(np.array([1, 0.01, 0.1, 0.03], np.float32), out)
    return weight * spread.reshape(-1, *[1] * (weight.ndim - 1))


def chain(middle: list[onnx.NodeProto], last: str, *, taps=(1, 1), reader_inputs=4, group=1, **more) -> onnx.ModelProto:
    """Conv -> ``middle`` -> Conv, from value ``c`` to value ``last``."""
    rng = np.random.default_rng(0)
    out = 4 if group == 1 else reader_inputs
    spatial = [6] * len(taps)
    constants = {
        "w1": uneven(rng, 4, 3, *taps),
        "b1": (rng.standard_normal(4) * 0.1).astype(np.float32),
        "w2": rng.standard_normal((out, reader_inputs // group, *taps)).astype(np.float32),
        **more,
    }
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c"], name="first"),
        *middle,
        make("Conv", [last, "w2"], ["y"], name="second", group=group),
    ]
    used = {i for n in nodes for i in n.input}
    constants = {k: v for k, v in constants.items() if k in used}
    proto = build(nodes, [("x", FLOAT, [1, 3, *spatial])], [("y", FLOAT, [1, out, *[None] * len(taps)])], constants)
    return onnx.shape_inference.infer_shapes(proto)


def equalize(proto: onnx.ModelProto, **changes):
    state = start(proto)
    data = samples(state.model, 3)
    where = replace(context(data=data), **changes)
    found = make_pass("equalize-channels").run(state, where)
    for index in range(len(data)):
        for a, b in zip(outputs(state.model, data[index]), outputs(found.state.model, data[index]), strict=True):
            assert np.abs(a - b).max() <= folded(a, 256)
    return found


def factors_of(found) -> dict[str, np.ndarray]:
    return {k: t.correction for k, t in found.state.plan.tensors.items() if t.role is Role.FACTORS}


MIDDLES = {
    "nothing": ([], "c"),
    "relu": ([make("Relu", ["c"], ["r"], name="relu")], "r"),
    "leaky relu": ([make("LeakyRelu", ["c"], ["r"], name="leaky", alpha=0.1)], "r"),
    "pools": (
        [
            make("Relu", ["c"], ["r"], name="relu"),
            make("MaxPool", ["r"], ["m"], name="max", kernel_shape=[1, 1]),
            make("AveragePool", ["m"], ["a"], name="mean", kernel_shape=[1, 1]),
        ],
        "a",
    ),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_it_crosses_what_is_positively_homogeneous(name):
    found = equalize(chain(*MIDDLES[name]))
    assert found.report.changed
    (factors,) = factors_of(found).values()
    assert np.all((factors > 0) & (factors <= 1))
    assert factors.min() < 0.5


@pytest.mark.parametrize("group", [1, 4], ids=["dense", "depthwise"])
@pytest.mark.parametrize("taps", [(3,), (1, 1), (1, 1, 1)], ids=["1-D", "2-D", "3-D"])
def test_it_knows_all_kinds_of_convolutions(taps, group):
    assert equalize(chain(*MIDDLES["relu"], taps=taps, group=group)).report.changed


def test_channels_come_out_more_alike():
    proto = uneven_net()
    found = equalize(proto)
    state = start(proto)

    def peaks(model):
        data = samples(model, 8)
        copy = onnx.ModelProto()
        copy.CopyFrom(onnx.ModelProto.FromString(_bytes(model)))
        copy.graph.output.append(helper.make_tensor_value_info("r", FLOAT, None))
        return np.max([outputs(copy, data[i])[-1].max((0, 2, 3)) for i in range(8)], axis=0)

    before, after = peaks(state.model), peaks(found.state.model)
    assert after.max() / after.min() < 0.5 * before.max() / before.min()


def _bytes(model) -> bytes:
    from tests.compiling import serialized

    return serialized(model)


def test_both_readers_behind_a_concat_are_scaled():
    middle = [
        make("Relu", ["c"], ["r"], name="relu"),
        make("Concat", ["r", "x", "r"], ["k"], name="concat", axis=1),
    ]
    found = equalize(chain(middle, "k", reader_inputs=11))
    assert found.report.changed


def test_golden():
    """One uneven pair, with factors from the plan, so that the text is the same everywhere."""
    from qcompiler.plan import TensorPlan

    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c"], name="first"),
        make("Relu", ["c"], ["r"], name="relu"),
        make("Concat", ["x", "r"], ["k"], name="concat", axis=1),
        make("Conv", ["k", "w2"], ["y"], name="second"),
    ]
    constants = {
        "w1": np.array([1, 2, 3, 4], np.float32).reshape(2, 2, 1, 1),
        "b1": np.array([1, -1], np.float32),
        "w2": np.arange(1, 5, dtype=np.float32).reshape(1, 4, 1, 1),
    }
    state = start(build(nodes, [("x", FLOAT, [1, 2, 2, 2])], [("y", FLOAT, [1, 1, 2, 2])], constants))
    entry = TensorPlan(name="r:factors", role=Role.FACTORS, correction=np.array([0.5, 0.25]))
    recorded = replace(state, plan=state.plan.with_tensors(entry))
    found = run_passes(recorded, context(data=samples(state.model, 1)), "equalize-channels")
    assert_golden("equalize-channels-concat", state.model, found.model)


# -- refusals --------------------------------------------------------------------------------------------


def clipped(high: float) -> onnx.ModelProto:
    nodes = [make("Clip", ["c", "zero", "high"], ["r"], name="relu6")]
    return chain(nodes, "r", zero=np.float32(0), high=np.float32(high))


def branched(op: str) -> onnx.ModelProto:
    proto = chain([make("Relu", ["c"], ["r"], name="relu"), make(op, ["r"], ["s"], name="other")], "r")
    proto.graph.output.append(helper.make_tensor_value_info("s", FLOAT, [1, 4, 6, 6]))
    return proto


def exposed() -> onnx.ModelProto:
    proto = chain(*MIDDLES["relu"])
    proto.graph.output.append(helper.make_tensor_value_info("r", FLOAT, [1, 4, 6, 6]))
    return proto


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (clipped(6.0), "clips at a fixed value"),
        (branched("Sigmoid"), "not positively homogeneous"),
        (exposed(), "an output of the model"),
        (chain([make("Sigmoid", ["c"], ["r"], name="gate")], "r"), "not positively homogeneous"),
    ],
    ids=["clip", "branch", "output", "sigmoid"],
)
def test_it_refuses_with_the_reason(proto, reason):
    found = equalize(proto)
    assert not found.report.changed
    assert reason in " ".join(s.reason for s in found.report.skipped)


def test_a_clip_that_is_never_reached_becomes_a_relu():
    """The input lies in (0, 1), so the convolution stays below the limit; its channels grow beyond it."""
    nodes = [
        make("Sigmoid", ["x"], ["s"], name="gate"),
        make("Conv", ["s", "w1"], ["c"], name="first"),
        make("Clip", ["c", "zero", "high"], ["r"], name="relu6"),
        make("Conv", ["r", "w2"], ["y"], name="second"),
    ]
    rng = np.random.default_rng(0)
    weight = np.abs(uneven(rng, 4, 3, 1, 1))
    reach = float(weight.sum((1, 2, 3)).max())
    constants = {
        "w1": weight,
        "w2": rng.standard_normal((2, 4, 1, 1)).astype(np.float32),
        "zero": np.float32(0),
        "high": np.float32(reach),
    }
    found = equalize(build(nodes, [("x", FLOAT, [1, 3, 6, 6])], [("y", FLOAT, [1, 2, 6, 6])], constants))
    assert found.report.changed
    assert "Clip" not in [n.op_type for n in found.state.model.graph]


def test_shared_weights_are_left_alone():
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="first"),
        make("Relu", ["c"], ["r"], name="relu"),
        make("Conv", ["r", "w"], ["y"], name="second"),
    ]
    constants = {"w": uneven(np.random.default_rng(0), 4, 4, 1, 1)}
    found = equalize(build(nodes, [("x", FLOAT, [1, 4, 6, 6])], [("y", FLOAT, [1, 4, 6, 6])], constants))
    assert not found.report.changed


def test_it_keeps_what_it_was_given_where_a_trial_shows_no_gain():
    state = start(uneven_net())
    levels = iter([30.0, 30.1])
    where = replace(context(data=samples(state.model, 2)), trial=lambda _: next(levels))
    found = make_pass("equalize-channels").run(state, where)
    assert found.state is state
    assert "gained nothing" in found.report.notes[0]


def test_it_keeps_its_work_where_a_trial_shows_a_gain():
    levels = iter([30.0, 33.0])
    assert equalize(uneven_net(), trial=lambda _: next(levels)).report.changed


def test_without_data_it_uses_what_batch_norm_knew():
    from qcompiler.state import ChannelMoments

    state = start(uneven_net())
    moments = ChannelMoments(mean=np.zeros(6), std=np.array([1, 0.01, 0.3, 0.1, 0.02, 1]))
    known = replace(state, moments={"c": moments, "r": moments})
    found = make_pass("equalize-channels").run(known, context())
    (factors,) = factors_of(found).values()
    np.testing.assert_allclose(found.state.moments["r"].std, moments.std / factors)
    assert not make_pass("equalize-channels").run(state, context()).report.changed
