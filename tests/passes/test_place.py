"""Which nodes run in integers, and why the others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.errors import UsageError
from qcompiler.plan import Precision, Role
from qcompiler.recipe import MatchRule
from qcompiler.registry import make_pass
from tests.compiling import context, run_passes, samples, start
from tests.models import FLOAT, branch_net, build, conv_net, dense_net, token_net

make = helper.make_node
INTEGER, MOVE, DYNAMIC = Precision.INTEGER, Precision.MOVE, Precision.DYNAMIC
WEIGHT_ONLY, FLOATING = Precision.WEIGHT_ONLY, Precision.FLOAT


def weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) / 4).astype(np.float32)


def place(proto: onnx.ModelProto, target: str = "x86", rules: tuple[MatchRule, ...] = (), *, data: bool = True):
    """Return the plan and the report."""
    state = start(proto)
    where = context(target, samples(state.model, 1, free=2) if data else None, rules)
    found = make_pass("place").run(state, where)
    return found.state.plan, found.report


def precisions(plan) -> dict[str, Precision]:
    return {name: node.precision for name, node in plan.nodes.items()}


def one(
    op: str, inputs: list[str], shape: list[int], constants: dict[str, np.ndarray], **attributes
) -> onnx.ModelProto:
    """One operator on ``x``, of unknown output shape."""
    node = make(op, inputs, ["y"], name="node", **attributes)
    proto = build([node], [("x", FLOAT, shape)], [("y", FLOAT, None)], constants)
    return onnx.shape_inference.infer_shapes(proto)


def test_a_convolutional_network():
    plan, report = place(conv_net(channels=16, batch_norm=False))
    assert precisions(plan) == {
        "conv1": INTEGER,
        "act1": INTEGER,
        "dw": INTEGER,
        "relu6": INTEGER,
        "pw": INTEGER,
        "add": INTEGER,
        "pool": INTEGER,
        "flatten": MOVE,
        "fc": INTEGER,
    }
    activations = {t.name for t in plan.tensors.values() if t.role is Role.ACTIVATION}
    # Grids lie behind fused activations, and not on the output of the last Gemm, which stays float.
    assert activations == {"image", "a1", "d6", "p", "s", "g", "f"}
    assert plan.target == "x86"
    assert {m.name: m.value for m in report.metrics}["integer"] == 8


def test_weights_have_one_scale_per_channel():
    plan, _ = place(conv_net(batch_norm=False))
    axes = {t.name: t.spec.axis for t in plan.tensors.values() if t.role is Role.WEIGHT}
    assert axes == {"conv1.w": 0, "dw.w": 0, "pw.w": 0, "fc.w": 0}
    plan, _ = place(dense_net())
    assert {n: plan.tensors[n].spec.axis for n in ("w1", "w2")} == {"w1": 0, "w2": 1}


def test_tokens_are_multiplied_dynamically():
    plan, _ = place(token_net(words=600))
    found = precisions(plan)
    assert found["head"] is DYNAMIC
    assert found["embed"] is WEIGHT_ONLY
    assert place(token_net(), "reference")[0].nodes["head"].precision is INTEGER, "static grids only"


def test_what_no_integer_layer_follows_stays_float():
    plan, _ = place(conv_net(activation="Sigmoid", batch_norm=False))
    assert plan.nodes["act1"].precision is INTEGER
    nodes = [make("Conv", ["x", "w"], ["c"], name="conv"), make("Sigmoid", ["c"], ["y"], name="gate")]
    proto = build(nodes, [("x", FLOAT, [1, 8, 4, 4])], [("y", FLOAT, [1, 9, 4, 4])], {"w": weight(9, 8, 1, 1)})
    plan, _ = place(proto)
    assert plan.nodes["gate"].precision is FLOATING
    assert "no integer compute follows" in plan.nodes["gate"].reason


REFUSED = {
    "computed weights": (one("MatMul", ["x", "x"], [4, 4], {}), "computed at run time"),
    "weights on the left": (one("MatMul", ["w", "x"], [16, 4], {"w": weight(20, 16)}), "computed at run time"),
    "constant input": (
        one("MatMul", ["d", "w"], [1], {"d": weight(3, 16), "w": weight(16, 20)}),
        "its input is constant",
    ),
    "empty weights": (one("Gemm", ["x", "w"], [2, 4], {"w": weight(4, 0)}), "its weights are empty"),
    "alpha": (one("Gemm", ["x", "w"], [2, 16], {"w": weight(16, 20)}, alpha=0.5), "alpha or beta"),
    "transA": (one("Gemm", ["x", "w"], [16, 2], {"w": weight(16, 20)}, transA=1), "transposed input"),
    "bias by row": (one("Gemm", ["x", "w", "b"], [2, 16], {"w": weight(16, 20), "b": weight(2, 1)}), "per channel"),
    "scalar bias": (one("Gemm", ["x", "w", "b"], [2, 16], {"w": weight(16, 20), "b": weight()}), "per channel"),
    "softmax": (one("Softmax", ["x"], [2, 4], {}), "loses small probabilities"),
    "unknown": (one("Erf", ["x"], [2, 4], {}), "in float only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name):
    proto, reason = REFUSED[name]
    plan, _ = place(proto)
    assert plan.nodes["node"].precision in (FLOATING, WEIGHT_ONLY)
    assert reason in plan.nodes["node"].reason


@pytest.mark.parametrize(
    ("constants", "attributes"),
    [
        ({"w": weight(20, 16), "b": weight(20)}, {"transB": 1}),
        ({"w": weight(16, 20), "b": weight(1, 20)}, {}),
        ({"w": weight(16, 20)}, {"beta": 1.0}),
    ],
)
def test_ordinary_gemms_run(constants, attributes):
    inputs = ["x", *constants]
    assert place(one("Gemm", inputs, [2, 16], constants, **attributes))[0].nodes["node"].precision is INTEGER


@pytest.mark.parametrize("shape", [(20, 16, 3), (20, 16, 3, 3), (20, 16, 3, 3, 3), (20, 4, 3, 3)])
def test_convolutions_of_every_rank_run(shape):
    data = [1, 16, *[8] * (len(shape) - 2)]
    proto = one("Conv", ["x", "w"], data, {"w": weight(*shape)}, group=16 // shape[1])
    assert place(proto)[0].nodes["node"].precision is INTEGER


def between(op: str, *inputs: str, outputs: tuple[str, ...] = ("m",), constants=None, **attributes) -> onnx.ModelProto:
    """Conv, one operator, Conv."""
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="first"),
        make("Conv", ["x", "w2"], ["d"], name="other"),
        make(op, list(inputs), list(outputs), name="node", **attributes),
        make("Conv", ["m", "v"], ["y"], name="last"),
    ]
    channels = 16 if op == "Concat" else 8
    all_constants = {"w": weight(8, 8, 1, 1), "w2": weight(8, 8, 1, 1) * 2, "v": weight(8, channels, 1, 1)}
    all_constants |= constants or {}
    nodes = [n for n in nodes if n.name != "other" or "d" in inputs]
    used = {i for n in nodes for i in n.input}
    kept = {k: v for k, v in all_constants.items() if k in used}
    return onnx.shape_inference.infer_shapes(build(nodes, [("x", FLOAT, [1, 8, 6, 6])], [("y", FLOAT, None)], kept))


BETWEEN = {
    "add": (between("Add", "c", "d"), INTEGER, ""),
    "add of itself": (between("Add", "c", "c"), FLOATING, "the same value"),
    "add of a constant": (between("Add", "c", "k", constants={"k": weight(1, 8, 6, 6)}), FLOATING, "constant operand"),
    "add of the input": (between("Add", "c", "x"), FLOATING, "not computed in integers"),
    "concat": (between("Concat", "c", "d", axis=1), INTEGER, ""),
    "concat of one value twice": (between("Concat", "c", "c", axis=1), INTEGER, ""),
    "concat of a constant": (
        between("Concat", "c", "k", axis=1, constants={"k": weight(1, 8, 6, 6)}),
        FLOATING,
        "constant",
    ),
    "max pool": (between("MaxPool", "c", kernel_shape=[2, 2]), MOVE, ""),
    "max pool with indices": (between("MaxPool", "c", outputs=("m", "i"), kernel_shape=[2, 2]), MOVE, ""),
    "clip": (between("Clip", "c", "lo", "hi", constants={"lo": np.float32(0), "hi": np.float32(6)}), INTEGER, "fused"),
    "clip without limits": (between("Clip", "c"), INTEGER, "fused"),
    "clip above zero": (between("Clip", "c", "lo", constants={"lo": np.float32(1)}), FLOATING, "leave out 0"),
    "clip below zero": (between("Clip", "c", "", "hi", constants={"hi": np.float32(-1)}), FLOATING, "leave out 0"),
    "resize": (
        between("Resize", "c", "", "s", mode="nearest", constants={"s": np.array([1, 1, 2, 2], np.float32)}),
        MOVE,
        "",
    ),
    "linear resize": (
        between("Resize", "c", "", "s", mode="linear", constants={"s": np.array([1, 1, 2, 2], np.float32)}),
        FLOATING,
        "nearest",
    ),
    "pad": (between("Pad", "c", "p", constants={"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}), MOVE, ""),
    "pad with one": (
        between("Pad", "c", "p", "o", constants={"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "o": np.float32(1)}),
        FLOATING,
        "no exact code",
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_integer_layers(name):
    proto, expected, reason = BETWEEN[name]
    plan, _ = place(proto)
    assert plan.nodes["node"].precision is expected, plan.nodes["node"].reason
    assert reason in plan.nodes["node"].reason


def test_indices_of_a_pool_that_are_read_keep_it_float():
    proto = between("MaxPool", "c", outputs=("m", "i"), kernel_shape=[2, 2])
    proto.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, None))
    assert "second output" in place(proto)[0].nodes["node"].reason


def test_an_activation_read_elsewhere_is_not_fused():
    proto = between("Relu", "c")
    proto.graph.output.append(helper.make_tensor_value_info("c", FLOAT, None))
    assert "used elsewhere" in place(proto)[0].nodes["node"].reason


def tied(second: str, **attributes) -> onnx.ModelProto:
    nodes = [
        make("Gemm", ["x", "w"], ["g"], name="first", transB=1),
        make(second, ["g", "w"], ["y"], name="node", **attributes),
    ]
    return build(nodes, [("x", FLOAT, [2, 20])], [("y", FLOAT, [2, 20])], {"w": weight(20, 20)})


def test_a_shared_weight_has_one_grid():
    plan, _ = place(tied("Gemm", transB=1))
    assert plan.nodes["node"].precision is INTEGER
    plan, report = place(tied("MatMul"))
    assert plan.nodes["node"].precision is WEIGHT_ONLY
    assert "along another axis" in plan.nodes["node"].reason
    assert plan.tensors["w"].spec.axis == 0
    assert "another layer" in " ".join(s.reason for s in report.skipped)


def test_the_grid_of_a_shared_weight_is_that_of_the_integer_layer():
    nodes = [
        make("Gather", ["w", "ids"], ["e"], name="embed"),
        make("Gemm", ["e", "w"], ["y"], name="node"),
    ]
    inputs = [("ids", TensorProto.INT64, [3])]
    proto = build(nodes, inputs, [("y", FLOAT, [3, 20])], {"w": weight(20, 20)})
    plan, _ = place(proto)
    assert precisions(plan) == {"embed": WEIGHT_ONLY, "node": INTEGER}
    assert plan.tensors["w"].spec.axis == 1


def test_subgraphs_are_stored_in_integers_and_compute_in_float():
    plan, _ = place(branch_net())
    kinds = {n.op_type: n.precision for n in plan.nodes.values()}
    assert kinds["If"] is FLOATING
    assert kinds["MatMul"] is FLOATING, "8 x 8 weights are too small"


def test_small_weights_of_float_layers_are_left_alone():
    plan, report = place(one("Gemm", ["x", "w"], [4, 2], {"w": weight(4, 4)}, transA=1))
    assert plan.nodes["node"].precision is FLOATING
    assert "too small" in " ".join(s.reason for s in report.skipped)


# -- profiles, rules, no data ------------------------------------------------------------------------------


def test_profiles_without_dot_products_keep_narrow_convolutions_float():
    proto = conv_net(channels=16, batch_norm=False)
    assert place(proto, "arm:cortex-a53")[0].nodes["conv1"].precision is not INTEGER
    assert place(proto, "arm:cortex-a53")[0].nodes["dw"].precision is INTEGER, "depthwise"
    assert place(proto, "arm:cortex-a76")[0].nodes["conv1"].precision is INTEGER


def test_rules_of_the_recipe():
    proto = conv_net(channels=16, batch_norm=False)
    plan, _ = place(proto, rules=(MatchRule(pattern="^dw$", keep_float=True),))
    assert plan.nodes["dw"].precision is FLOATING
    assert "dw.w" not in plan.tensors
    plan, _ = place(proto, rules=(MatchRule(pattern=r"^pw\.w$", scheme="weight_only"),))
    assert plan.nodes["pw"].precision is WEIGHT_ONLY, "found by the name of its weight"
    both = MatchRule(pattern="w", keep_float=True), MatchRule(pattern="^dw$")
    assert place(proto, rules=both)[0].nodes["dw"].precision is INTEGER, "the later rule wins"
    plan, _ = place(token_net(words=600), rules=(MatchRule(pattern="head", scheme="static"),))
    assert plan.nodes["head"].precision is INTEGER
    with pytest.raises(UsageError, match="nowhere"):
        place(proto, rules=(MatchRule(pattern="nowhere"),))


def test_widths_of_the_recipe_are_those_of_the_plan():
    state = start(conv_net())
    where = context("x86", samples(state.model, 1), bits="W8A4")
    plan = make_pass("place").run(state, where).state.plan
    widths = {role: {t.spec.num_bits for t in plan.tensors.values() if t.role is role} for role in Role}
    assert (widths[Role.WEIGHT], widths[Role.ACTIVATION]) == ({8}, {4})


@pytest.mark.parametrize(
    ("target", "bits", "message"),
    [
        ("arm", "W8A16", r"target 'arm:cortex-a76' runs no 16-bit activations; it runs 4 and 8\. Use --bits W8A8 or"),
        ("x86", "W4A8", r"target 'x86' runs no 4-bit weights; it runs 8\. Use --bits W8A8 or another target"),
        ("reference", "W4A4", r"runs no 4-bit weights; it runs 8\. Use --bits W8A4 or"),
        ("openvino", "W8A4", r"target 'openvino' runs no 4-bit activations; it runs 8\."),
        ("nnapi", "W8A16", "runs no 16-bit activations"),
    ],
)
def test_widths_that_a_target_does_not_take(target, bits, message):
    state = start(conv_net())
    with pytest.raises(UsageError, match=message) as caught:
        make_pass("place").run(state, context(target, samples(state.model, 1), bits=bits))
    assert "\n" not in str(caught.value)


def test_widths_of_a_rule_that_a_target_does_not_take():
    state = start(conv_net())
    rule = MatchRule(pattern="conv1", num_bits=3)
    with pytest.raises(
        UsageError, match=r'\[match."conv1"\]: target \'x86\' runs no 3-bit weights; it runs 8\. Set bits'
    ):
        make_pass("place").run(state, context("x86", samples(state.model, 1), (rule,)))


def test_run_time_scales_are_for_8_bits():
    state = start(token_net())
    data = samples(state.model, 1, free=2)
    plan = make_pass("place").run(state, context("x86", data, bits="W8A4")).state.plan
    assert DYNAMIC not in precisions(plan).values()
    assert INTEGER in precisions(plan).values()
    rules = (MatchRule(pattern=".", scheme="dynamic"),)
    asked = make_pass("place").run(state, context("x86", data, rules, bits="W8A4")).state.plan
    assert any("found at run time have 8 bits" in node.reason for node in asked.nodes.values())


def test_a_row_may_take_narrower_activations_than_its_target(monkeypatch):
    from qcompiler.targets.x86 import X86

    monkeypatch.setattr(X86, "activation_bits", frozenset({8, 16}))
    state = start(conv_net())
    plan = make_pass("place").run(state, context("x86", samples(state.model, 1), bits="W8A16")).state.plan
    assert INTEGER not in precisions(plan).values()
    assert any("Conv with u16 activations has no integer kernel; it has u8" in n.reason for n in plan.nodes.values())


def test_without_data_only_what_has_statistics_runs_in_integers():
    plan, _ = place(conv_net(channels=16), data=False)
    assert INTEGER not in precisions(plan).values()
    assert "the range of what it reads is unknown" in plan.nodes["conv1"].reason
    state = start(conv_net(channels=16))
    found = run_passes(state, context(), "fold-batch-norm", "estimate-statistics", "place")
    assert precisions(found.plan)["dw"] is INTEGER
    assert precisions(found.plan)["conv1"] is WEIGHT_ONLY, "nothing is known about the image"


def test_factors_of_an_earlier_rewrite_stay_in_the_plan():
    from qcompiler.plan import TensorPlan

    state = start(conv_net())
    factors = TensorPlan(name="n1:factors", role=Role.FACTORS, correction=np.ones(8))
    state = replace(state, plan=state.plan.with_tensors(factors))
    assert "n1:factors" in make_pass("place").run(state, context()).state.plan.tensors
