"""The capability table against the installed ONNX Runtime: every row is compiled, and what runs is read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompiler.plan import Precision
from qcompiler.recipe import MatchRule
from qcompiler.runtime.optimized import INTEGER_OPS
from qcompiler.runtime.ort_cpu import FLOAT_REASONS, FUSED_ACTIVATIONS, ORT_CPU_RULES
from tests.compiling import compiled, runtime_graph, runtime_ops
from tests.models import FLOAT, build
from tests.targets.qdq import Graph

rng = np.random.default_rng(0)
make = onnx.helper.make_node


def weight(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / 4).astype(np.float32)


IMAGE = [1, 16, 6, 6]
LAYERS: dict[str, tuple[list[int], dict[str, np.ndarray], dict[str, object]]] = {
    "Conv": (IMAGE, {"w": weight(24, 16, 3, 3), "b": weight(24)}, {}),
    "Gemm": ([4, 16], {"w": weight(24, 16), "b": weight(24)}, {"transB": 1}),
    "MatMul": ([4, 16], {"w": weight(16, 24)}, {}),
}
BETWEEN: dict[str, tuple[list[str], dict[str, np.ndarray], dict[str, object]]] = {
    "Add": (["c", "d"], {}, {}),
    "Mul": (["c", "d"], {}, {}),
    "Concat": (["c", "d"], {}, {"axis": 1}),
    "AveragePool": (["c"], {}, {"kernel_shape": [2, 2]}),
    "GlobalAveragePool": (["c"], {}, {}),
    "Sigmoid": (["c"], {}, {}),
    "LeakyRelu": (["c"], {}, {"alpha": 0.1}),
    "MaxPool": (["c"], {}, {"kernel_shape": [2, 2]}),
    "Reshape": (["c", "k"], {"k": np.array([1, 16, 2, 18])}, {}),
    "Flatten": (["c"], {}, {}),
    "Squeeze": (["c", "k"], {"k": np.array([0])}, {}),
    "Unsqueeze": (["c", "k"], {"k": np.array([2])}, {}),
    "Transpose": (["c"], {}, {"perm": [0, 1, 3, 2]}),
    "Slice": (["c", "k", "e", "a"], {"k": np.array([1]), "e": np.array([5]), "a": np.array([2])}, {}),
    "Gather": (["c", "k"], {"k": np.array([0, 2, 4])}, {"axis": 2}),
    "Resize": (["c", "", "k"], {"k": np.array([1, 1, 2, 2], np.float32)}, {"mode": "nearest"}),
    "Pad": (["c", "k"], {"k": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, {}),
}
READERS = {"Flatten": "Gemm", "Squeeze": "MatMul", "Unsqueeze": "Conv3"}


def layer_model(op: str, *, tail: bool) -> onnx.ModelProto:
    """One layer; with a tail, something behind it that takes quantized values."""
    shape, constants, attributes = LAYERS[op]
    nodes = [make(op, ["x", *constants], ["h" if tail else "y"], name="node", **attributes)]
    if tail:
        reader, w = ("Conv", weight(8, 24, 1, 1)) if op == "Conv" else (op, weight(24, 8))
        nodes.append(make(reader, ["h", "v"], ["y"], name="reader"))
        constants = {**constants, "v": w}
    return onnx.shape_inference.infer_shapes(build(nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)], constants))


def between_model(op: str) -> onnx.ModelProto:
    """Conv, the operator, and a layer that reads it."""
    inputs, constants, attributes = BETWEEN[op]
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="first"),
        *([make("Conv", ["x", "u"], ["d"], name="other")] if "d" in inputs else []),
        make(op, inputs, ["m"], name="node", **attributes),
    ]
    constants = {**constants, "w": weight(16, 16, 1, 1), "u": weight(16, 16, 1, 1)}
    shapes = onnx.shape_inference.infer_shapes(
        build(nodes, [("x", FLOAT, IMAGE)], [("m", FLOAT, None)], {k: v for k, v in constants.items() if k != "v"})
    )
    made = [d.dim_value for d in shapes.graph.output[0].type.tensor_type.shape.dim]
    reader = READERS.get(op, "Conv")
    if reader == "Gemm":
        constants["v"] = weight(made[1], 8)
    elif reader == "MatMul":
        constants["v"] = weight(made[-1], 8)
    else:
        constants["v"] = weight(8, made[1], *[1] * (len(made) - 2))
    nodes.append(make(reader.rstrip("3"), ["m", "v"], ["y"], name="last"))
    used = {i for n in nodes for i in n.input}
    kept = {k: v for k, v in constants.items() if k in used}
    return onnx.shape_inference.infer_shapes(build(nodes, [("x", FLOAT, IMAGE)], [("y", FLOAT, None)], kept))


def rows(precision: Precision) -> list[object]:
    found = [r for r in ORT_CPU_RULES if r.precision is precision]
    return [pytest.param(r, id=f"{r.op_type}") for r in found]


def test_every_row_has_a_graph():
    assert {r.op_type for r in ORT_CPU_RULES} == {*LAYERS, *BETWEEN}


def matches(ops: list[str], runtime_op: str) -> int:
    """Count an operator, with the name that the channels-last layout gives it."""
    return sum(op in (runtime_op, f"Nhwc{runtime_op}") for op in ops)


@pytest.mark.parametrize("rule", [p for p in rows(Precision.INTEGER) if p.values[0].weights])
@pytest.mark.parametrize("tail", [True, False])
def test_layers_run_in_integers(rule, tail):
    static = (MatchRule(pattern="node|reader", scheme="static"),)
    ops = runtime_ops(compiled(layer_model(rule.op_type, tail=tail), rules=static))
    assert rule.op_type not in ops
    if tail or rule.output:
        assert rule.runtime_op in ops
    else:
        assert {"QGemm", "MatMulIntegerToFloat"} & set(ops), "with a float output, too"


@pytest.mark.parametrize("rule", [p for p in rows(Precision.INTEGER) if p.values[0].weights])
def test_layers_of_4_bit_activations_run_in_integers(rule):
    """Codes are bytes below 16: the Clip that keeps them there is one of codes, behind the integer kernel."""
    static = (MatchRule(pattern="node|reader", scheme="static"),)
    graph = runtime_graph(compiled(layer_model(rule.op_type, tail=True), rules=static, bits="W8A4"))
    ops = [node.op_type for node in graph.node]
    assert rule.op_type not in ops
    assert rule.runtime_op in ops
    limits = [n for n in graph.node if n.op_type == "Clip"]
    assert limits
    made = {name: node.op_type for node in graph.node for name in node.output}
    sources = {made[n.input[0]] for n in limits}
    assert sources <= {"QuantizeLinear", "Transpose", rule.runtime_op}


@pytest.mark.parametrize(
    "rule", [*(p for p in rows(Precision.INTEGER) if not p.values[0].weights), *rows(Precision.MOVE)]
)
def test_4_bit_codes_between_layers_stay_integers(rule):
    static = (MatchRule(pattern="last", scheme="static"),)
    ops = runtime_ops(compiled(between_model(rule.op_type), rules=static, bits="W8A4"))
    assert matches(ops, rule.runtime_op) or rule.op_type in ("Transpose", "Flatten", "Squeeze", "Unsqueeze", "Reshape")
    assert not {"Conv", "MatMul", "Gemm", "FusedConv"} & set(ops)
    assert ops.count("QuantizeLinear") == 1, "of the input; all else stays in codes"


@pytest.mark.parametrize("rule", [p for p in rows(Precision.INTEGER) if not p.values[0].weights])
def test_what_stands_between_layers_runs_in_integers(rule):
    static = (MatchRule(pattern="last", scheme="static"),)
    ops = runtime_ops(compiled(between_model(rule.op_type), rules=static))
    assert ops.count(rule.runtime_op) == 1, ops
    assert rule.op_type not in ops


@pytest.mark.parametrize("rule", rows(Precision.MOVE))
def test_what_moves_data_moves_integers(rule):
    graph = runtime_graph(compiled(between_model(rule.op_type), rules=(MatchRule(pattern="last", scheme="static"),)))
    ops = [n.op_type for n in graph.node]
    assert matches(ops, rule.runtime_op) >= 1, ops
    assert ops.count("QuantizeLinear") <= 1, f"only the input is quantized: {ops}"
    assert ops.count("DequantizeLinear") <= 1, f"only the output is decoded: {ops}"
    decoded = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    moved = [n for n in graph.node if matches([n.op_type], rule.runtime_op)]
    assert not decoded & {i for n in moved for i in n.input}
    assert INTEGER_OPS & set(ops)


@pytest.mark.parametrize("rule", rows(Precision.DYNAMIC))
def test_dynamic_rows_are_one_kernel(rule):
    proto = build(
        [make(rule.op_type, ["x", "w"], ["y"], name="node")],
        [("x", FLOAT, [1, 5, 16])],
        [("y", FLOAT, [1, 5, 24])],
        {"w": weight(16, 24)},
    )
    assert runtime_ops(compiled(proto)) == [rule.runtime_op]


@pytest.mark.parametrize("op", sorted(FUSED_ACTIVATIONS))
@pytest.mark.parametrize("layer", ["Conv", "Add"])
def test_fused_activations_vanish(op, layer):
    limits = {"low": np.float32(0), "high": np.float32(6)} if op == "Clip" else {}
    nodes = [make("Conv", ["x", "w"], ["c"], name="first"), make("Conv", ["c", "u"], ["d"], name="second")]
    last = "d"
    if layer == "Add":
        nodes.append(make("Add", ["c", "d"], ["s"], name="add"))
        last = "s"
    nodes += [make(op, [last, *limits], ["a"], name="act"), make("Conv", ["a", "v"], ["y"], name="last")]
    constants = {"w": weight(16, 16, 1, 1), "u": weight(16, 16, 1, 1), "v": weight(8, 16, 1, 1), **limits}
    proto = build(nodes, [("x", FLOAT, IMAGE)], [("y", FLOAT, [1, 8, 6, 6])], constants)
    ops = runtime_ops(compiled(proto))
    assert op not in ops
    assert ops.count("QLinearConv") == 3


# -- what stays in float, and that it does -------------------------------------------------------------------

FLOAT_GRAPHS = {
    "LayerNormalization": lambda g, v: g.node("LayerNormalization", v, g.constant(np.ones(6, np.float32))),
    "Gelu": lambda g, v: g.node("Gelu", v),
    "ReduceMean": lambda g, v: g.node("ReduceMean", v, axes=[2]),
    "HardSwish": lambda g, v: g.node("HardSwish", v),
    "ConvTranspose": lambda g, v: g.node("ConvTranspose", v, g.weight((16, 8, 2, 2), None)),
}


@pytest.mark.parametrize("op", sorted(FLOAT_GRAPHS))
def test_operators_without_an_integer_kernel_stay_float(op):
    graph = Graph()
    last = graph.pair(FLOAT_GRAPHS[op](graph, graph.pair("x")))
    proto = graph.model(last, IMAGE)
    if op == "Gelu":
        proto.opset_import[0].version = 20
    ops = runtime_ops(proto)
    assert op in ops or "HardSigmoid" in ops, f"{ops}: the reason in FLOAT_REASONS is no longer true"
    assert not any(o.startswith("QLinear") for o in ops)


def test_every_float_reason_is_tried():
    without_kernel = {op for op, why in FLOAT_REASONS.items() if "no integer kernel" in why}
    assert without_kernel == set(FLOAT_GRAPHS)


def test_softmax_has_an_integer_kernel_that_we_choose_not_to_use():
    graph = Graph()
    proto = graph.model(graph.pair(graph.node("Softmax", graph.pair("x"))), IMAGE)
    assert "QLinearSoftmax" in runtime_ops(proto)
