"""Folding: the graphs it makes, what it refuses, and that outputs stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.compiling import context, outputs, run_passes, samples, start
from tests.golden_text import assert_golden
from tests.models import FLOAT, build, conv_net
from tests.tolerances import folded

make = helper.make_node


def eighths(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers that print short and multiply exactly."""
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 8).astype(np.float32)


def norm(name: str, data: str, output: str, **attributes: object) -> onnx.NodeProto:
    inputs = [data, "gamma", "beta", "mean", "variance"]
    return make("BatchNormalization", inputs, [output], name=name, epsilon=0.0, **attributes)


def norm_constants(channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": np.resize(np.array([2, -1, 0.5], np.float32), channels),
        "beta": np.resize(np.array([1, 0, -2], np.float32), channels),
        "mean": np.resize(np.array([0.5, -1], np.float32), channels),
        "variance": np.resize(np.array([4, 1, 0.25], np.float32), channels),
    }


def fold(proto: onnx.ModelProto):
    """Return the state behind the pass and its report; the outputs of the model must be what they were."""
    from qcompiler.registry import make_pass

    state = start(proto)
    data = samples(state.model, 2)
    where = context(data=data)
    found = make_pass("fold-batch-norm").run(state, where)
    run_passes(state, where, "fold-batch-norm")  # the pipeline's own checks
    for index in range(len(data)):
        before, after = outputs(state.model, data[index]), outputs(found.state.model, data[index])
        for a, b in zip(before, after, strict=True):
            assert np.abs(a - b).max(initial=0) <= folded(a, 512)
    return found


def ops(found) -> list[str]:
    return [n.op_type for n in found.state.model.graph]


def conv_norm(**attributes: object) -> onnx.ModelProto:
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="conv"),
        norm("bn", "c", "n", **attributes),
        make("Relu", ["n"], ["y"]),
    ]
    constants = {"w": eighths(3, 2, 1, 1), **norm_constants(3)}
    return build(nodes, [("x", FLOAT, [1, 2, 4, 4])], [("y", FLOAT, [1, 3, 4, 4])], constants)


def product_add(weight=(4, 3), data=(2, 4), constant=(3,), output=(2, 3)) -> onnx.ModelProto:
    nodes = [make("MatMul", ["x", "w"], ["m"], name="fc"), make("Add", ["m", "b"], ["y"], name="bias")]
    constants = {"w": eighths(*weight), "b": eighths(*constant, seed=1)}
    return build(nodes, [("x", FLOAT, data)], [("y", FLOAT, output)], constants)


def scaled_conv() -> onnx.ModelProto:
    nodes = [
        make("Conv", ["x", "w", "b"], ["c"], name="conv"),
        make("Mul", ["factor", "c"], ["s"], name="scale"),
        make("Add", ["s", "offset"], ["y"], name="shift"),
    ]
    constants = {
        "w": eighths(3, 2, 1, 1),
        "b": eighths(3),
        "factor": np.array([2, 4, -1], np.float32).reshape(3, 1, 1),
        "offset": np.float32(0.5),
    }
    return build(nodes, [("x", FLOAT, [1, 2, 4, 4])], [("y", FLOAT, [1, 3, 4, 4])], constants)


@pytest.mark.parametrize(
    ("name", "proto"),
    [("conv-batch-norm", conv_norm()), ("matmul-add", product_add()), ("conv-mul-add", scaled_conv())],
)
def test_golden(name, proto):
    found = fold(proto)
    assert len(ops(found)) < len(proto.graph.node)
    assert_golden(f"fold-batch-norm-{name}", start(proto).model, found.state.model)


def test_gamma_and_beta_are_kept_as_moments():
    found = fold(conv_norm())
    moments = found.state.moments["n"]
    assert moments.mean.tolist() == [1, 0, -2]
    assert moments.std.tolist() == [2, 1, 0.5]


def test_a_whole_network():
    assert "BatchNormalization" not in ops(fold(conv_net()))


@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_norm_behind_gemm(transposed):
    nodes = [make("Gemm", ["x", "w", "b"], ["g"], name="fc", transB=transposed), norm("bn", "g", "y")]
    constants = {"w": eighths(3, 3), "b": eighths(1, 3), **norm_constants(3)}
    found = fold(build(nodes, [("x", FLOAT, [5, 3])], [("y", FLOAT, [5, 3])], constants))
    assert ops(found) == ["Gemm"]


def test_the_convolution_of_one_dimension():
    nodes = [make("Conv", ["x", "w"], ["c"], name="conv"), norm("bn", "c", "y")]
    constants = {"w": eighths(3, 2, 3), **norm_constants(3)}
    assert ops(fold(build(nodes, [("x", FLOAT, [1, 2, 9])], [("y", FLOAT, [1, 3, 7])], constants))) == ["Conv"]


def test_a_constant_factor_of_a_batched_product():
    nodes = [make("MatMul", ["x", "w"], ["m"], name="fc"), make("Mul", ["m", "half"], ["y"], name="scale")]
    constants = {"w": eighths(4, 3), "half": np.float32(0.5)}
    found = fold(build(nodes, [("x", FLOAT, [2, 5, 4])], [("y", FLOAT, [2, 5, 3])], constants))
    assert ops(found) == ["MatMul"]


# -- what it refuses -------------------------------------------------------------------------------------


def shared_weights() -> onnx.ModelProto:
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="conv"),
        norm("bn", "c", "n"),
        make("Conv", ["x", "w"], ["d"], name="other"),
        make("Add", ["n", "d"], ["y"], name="add"),
    ]
    constants = {"w": eighths(3, 2, 1, 1), **norm_constants(3)}
    return build(nodes, [("x", FLOAT, [1, 2, 4, 4])], [("y", FLOAT, [1, 3, 4, 4])], constants)


def read_twice() -> onnx.ModelProto:
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="conv"),
        norm("bn", "c", "n"),
        make("Add", ["n", "c"], ["y"], name="add"),
    ]
    constants = {"w": eighths(3, 2, 1, 1), **norm_constants(3)}
    return build(nodes, [("x", FLOAT, [1, 2, 4, 4])], [("y", FLOAT, [1, 3, 4, 4])], constants)


def inner_output() -> onnx.ModelProto:
    proto = conv_norm()
    proto.graph.output.append(helper.make_tensor_value_info("c", FLOAT, [1, 3, 4, 4]))
    return proto


def behind_pool() -> onnx.ModelProto:
    nodes = [make("GlobalMaxPool", ["x"], ["p"], name="pool"), norm("bn", "p", "y")]
    return build(nodes, [("x", FLOAT, [1, 3, 4, 4])], [("y", FLOAT, [1, 3, 1, 1])], norm_constants(3))


def scaled_gemm() -> onnx.ModelProto:
    nodes = [make("Gemm", ["x", "w"], ["g"], name="fc", alpha=0.5), norm("bn", "g", "y")]
    constants = {"w": eighths(4, 3), **norm_constants(3)}
    return build(nodes, [("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 3])], constants)


def norm_of_rows() -> onnx.ModelProto:
    """Channels of BatchNormalization are axis 1, columns of the product are axis 2; both have 3."""
    nodes = [make("MatMul", ["x", "w"], ["m"], name="fc"), norm("bn", "m", "y")]
    constants = {"w": eighths(4, 3), **norm_constants(3)}
    return build(nodes, [("x", FLOAT, [2, 3, 4])], [("y", FLOAT, [2, 3, 3])], constants)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (shared_weights(), "shared with another node"),
        (read_twice(), "used elsewhere too"),
        (inner_output(), "used elsewhere too"),
        (behind_pool(), "no convolution or matrix product"),
        (scaled_gemm(), "scales its operands"),
        (norm_of_rows(), "not those of the batched MatMul"),
    ],
)
def test_it_refuses_with_the_reason(proto, reason):
    found = fold(proto)
    assert not found.report.changed
    assert [s.reason for s in found.report.skipped if reason in s.reason]


def test_training_mode_is_refused():
    nodes = [
        make("Conv", ["x", "w"], ["c"], name="conv"),
        make(
            "BatchNormalization",
            ["c", "gamma", "beta", "mean", "variance"],
            ["y", "m", "v"],
            name="bn",
            training_mode=1,
        ),
    ]
    constants = {"w": eighths(3, 2, 1, 1), **norm_constants(3)}
    found = fold(build(nodes, [("x", FLOAT, [1, 2, 4, 4])], [("y", FLOAT, [1, 3, 4, 4])], constants))
    assert not found.report.changed


@pytest.mark.parametrize(
    "proto",
    [
        product_add(data=(2, 2, 4), output=(2, 2, 3)),
        product_add(constant=(2, 1)),
        product_add(constant=(1, 1, 3), output=(1, 2, 3)),
        product_add(weight=(3,), data=(3, 3), constant=(3,), output=(3,)),
        product_add(constant=(1, 1, 1), output=(1, 2, 3)),
    ],
    ids=["offset of a batched product", "varies by row", "raises the rank", "weight of rank 1", "scalar of rank 3"],
)
def test_constants_that_are_no_bias_are_left_alone(proto):
    assert ops(fold(proto)) == ["MatMul", "Add"]


def test_an_operator_of_another_domain_is_left_alone():
    proto = product_add()
    state = start(proto)
    next(n for n in state.model.graph if n.op_type == "Add").domain = "com.example"
    found = run_passes(state, context(), "fold-batch-norm", check=False)
    assert [n.op_type for n in found.model.graph] == ["MatMul", "Add"]


def test_a_wrong_factor_does_not_pass_the_pipeline(monkeypatch):
    from qcompiler.errors import QCompileError
    from qcompiler.passes import fold_batch_norm

    right = fold_batch_norm._affine
    monkeypatch.setattr(
        fold_batch_norm, "_affine", lambda node: None if (a := right(node)) is None else (a[0] * 1.01, a[1])
    )
    state = start(conv_norm())
    with pytest.raises(QCompileError, match="changed output 'y'"):
        run_passes(state, context(data=samples(state.model, 1)), "fold-batch-norm")
