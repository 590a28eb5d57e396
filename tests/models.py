"""Small models for tests, made from a seed; and what runs them in ONNX Runtime, the independent judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Info = tuple[str, int, Sequence[int | str | None]]
"""Name, ONNX type and shape of an input or output."""

FLOAT = TensorProto.FLOAT


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Info],
    outputs: Sequence[Info],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """Return a model from its parts."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*info) for info in inputs],
        [helper.make_tensor_value_info(*info) for info in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    domains = sorted({f.domain for f in functions})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=list(functions), ir_version=8, producer_name="tests"
    )


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write a model into a folder and return its path."""
    path = folder / name
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def session(model: onnx.ModelProto | Path | bytes) -> onnxruntime.InferenceSession:
    """Open a model in ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | Path | bytes, feeds: Mapping[str, Array]) -> list[Any]:
    """Return the outputs of a model."""
    outputs: list[Any] = session(model).run(None, dict(feeds))
    return outputs


def random_inputs(model: onnx.ModelProto | Path, seed: int = 0, free: int = 2) -> dict[str, Array]:
    """Return standard normal inputs (0 or 1 for integer ones); unknown dimensions become ``free``."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for argument in session(model).get_inputs():
        shape = [d if isinstance(d, int) else free for d in argument.shape]
        kind = argument.type.removeprefix("tensor(").removesuffix(")")
        if kind in ("float", "double", "float16"):
            dtype = {"float": np.float32, "double": np.float64, "float16": np.float16}[kind]
            feeds[argument.name] = np.asarray(rng.standard_normal(shape), dtype=dtype)
        elif kind == "string":
            feeds[argument.name] = np.full(shape, "a", dtype=object)
        elif kind == "bool":
            feeds[argument.name] = np.asarray(rng.random(shape) < 0.5)
        else:
            feeds[argument.name] = np.asarray(rng.integers(0, 2, shape), dtype=kind)
    return feeds


def _weight(rng: np.random.Generator, *shape: int) -> Array:
    fan_in = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def dense_net(seed: int = 0, *, width: int = 16, classes: int = 4, opset: int = 17) -> onnx.ModelProto:
    """Gemm, Relu, MatMul, Add: ``x`` (N, width) -> ``y`` (N, classes)."""
    rng = np.random.default_rng(seed)
    constants = {
        "w1": _weight(rng, 2 * width, width),
        "b1": _weight(rng, 2 * width),
        "w2": _weight(rng, 2 * width, classes),
        "b2": _weight(rng, classes),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu1"),
        helper.make_node("MatMul", ["r", "w2"], ["m"], name="fc2"),
        helper.make_node("Add", ["m", "b2"], ["y"], name="bias2"),
    ]
    return build(nodes, [("x", FLOAT, ["N", width])], [("y", FLOAT, ["N", classes])], constants, opset=opset)


def conv_net(
    seed: int = 0, *, channels: int = 8, batch_norm: bool = True, activation: str = "Relu", opset: int = 17
) -> onnx.ModelProto:
    """Conv, BatchNorm, activation, depthwise Conv, Clip(0, 6), residual Add, pooling, Gemm.

    ``image`` (N, 3, 16, 16) -> ``scores`` (N, 5). Both branches of the Add come from the same activation.
    """
    rng = np.random.default_rng(seed)
    c = channels
    constants: dict[str, Array] = {
        "conv1.w": _weight(rng, c, 3, 3, 3),
        "conv1.b": _weight(rng, c),
        "dw.w": _weight(rng, c, 1, 3, 3),
        "dw.b": _weight(rng, c),
        "pw.w": _weight(rng, c, c, 1, 1),
        "fc.w": _weight(rng, 5, c),
        "fc.b": _weight(rng, 5),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    nodes = [helper.make_node("Conv", ["image", "conv1.w", "conv1.b"], ["c1"], name="conv1", pads=[1, 1, 1, 1])]
    last = "c1"
    if batch_norm:
        constants |= {
            "bn.scale": (1 + 0.2 * rng.standard_normal(c)).astype(np.float32),
            "bn.bias": (0.3 * rng.standard_normal(c)).astype(np.float32),
            "bn.mean": (0.3 * rng.standard_normal(c)).astype(np.float32),
            "bn.var": (0.5 + rng.random(c)).astype(np.float32),
        }
        statistics = ["bn.scale", "bn.bias", "bn.mean", "bn.var"]
        nodes.append(helper.make_node("BatchNormalization", [last, *statistics], ["n1"], name="bn1"))
        last = "n1"
    nodes += [
        helper.make_node(activation, [last], ["a1"], name="act1"),
        helper.make_node("Conv", ["a1", "dw.w", "dw.b"], ["d"], name="dw", pads=[1, 1, 1, 1], group=c),
        helper.make_node("Clip", ["d", "zero", "six"], ["d6"], name="relu6"),
        helper.make_node("Conv", ["d6", "pw.w"], ["p"], name="pw"),
        helper.make_node("Add", ["p", "a1"], ["s"], name="add"),
        helper.make_node("GlobalAveragePool", ["s"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["scores"], name="fc", transB=1),
    ]
    image, scores = ("image", FLOAT, ["N", 3, 16, 16]), ("scores", FLOAT, ["N", 5])
    return build(nodes, [image], [scores], constants, opset=opset)


def old_conv_net(seed: int = 0, opset: int = 9) -> onnx.ModelProto:
    """Conv, Relu, Upsample (up to opset 9), Squeeze with an attribute: what opset 13 spells otherwise."""
    rng = np.random.default_rng(seed)
    constants = {"w": _weight(rng, 4, 2, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Upsample", ["r", "scales"], ["u"], name="up", mode="nearest"),
        helper.make_node("Squeeze", ["u"], ["y"], name="squeeze", axes=[0]),
    ]
    return build(nodes, [("x", FLOAT, [1, 2, 6, 6])], [("y", FLOAT, [4, 8, 8])], constants, opset=opset)


def branch_net(seed: int = 0) -> onnx.ModelProto:
    """If with a MatMul in each branch; the branches reuse names, and both read a constant of the main graph.

    ``x`` (2, 8), ``flag`` () bool -> ``y`` (2, 8).
    """
    rng = np.random.default_rng(seed)
    branches = {}
    for name in ("then_branch", "else_branch"):
        weight = numpy_helper.from_array(_weight(rng, 8, 8), "w")
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
            helper.make_node("Add", ["m", "shared"], ["out"], name="add"),
        ]
        out = helper.make_tensor_value_info("out", FLOAT, [2, 8])
        branches[name] = helper.make_graph(nodes, name, [], [out], [weight])
    node = helper.make_node("If", ["flag"], ["y"], name="if", **branches)
    inputs = [("x", FLOAT, [2, 8]), ("flag", TensorProto.BOOL, [])]
    return build([node], inputs, [("y", FLOAT, [2, 8])], {"shared": _weight(rng, 8)})


def loop_net(seed: int = 0) -> onnx.ModelProto:
    """Loop that multiplies a state by a matrix of the main graph: ``x`` (2, 4) -> ``y`` (2, 4)."""
    rng = np.random.default_rng(seed)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state_in", "w"], ["product"], name="step"),
            helper.make_node("Tanh", ["product"], ["state_out"], name="tanh"),
            helper.make_node("Identity", ["go_in"], ["go_out"], name="go"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", FLOAT, [2, 4]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", FLOAT, [2, 4]),
        ],
    )
    node = helper.make_node("Loop", ["count", "go", "x"], ["y"], name="loop", body=body)
    constants: dict[str, Array] = {"count": np.int64(3), "go": np.bool_(True), "w": _weight(rng, 4, 4)}
    constants = {name: np.asarray(value) for name, value in constants.items()}
    return build([node], [("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 4])], constants)


def function_net(seed: int = 0) -> onnx.ModelProto:
    """Two calls of a local function Dense(x, w) = Relu(MatMul(x, w)): ``x`` (N, 8) -> ``y`` (N, 8)."""
    rng = np.random.default_rng(seed)
    body = [
        helper.make_node("MatMul", ["a", "b"], ["ab"], name="matmul"),
        helper.make_node("Relu", ["ab"], ["c"]),
    ]
    function = helper.make_function("local", "Dense", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Dense", ["x", "w1"], ["h"], name="first", domain="local"),
        helper.make_node("Dense", ["h", "w2"], ["y"], name="second", domain="local"),
    ]
    constants = {"w1": _weight(rng, 8, 8), "w2": _weight(rng, 8, 8)}
    info = [("x", FLOAT, ["N", 8])], [("y", FLOAT, ["N", 8])]
    return build(nodes, *info, constants, functions=[function])


def token_net(seed: int = 0, *, words: int = 50, width: int = 12) -> onnx.ModelProto:
    """Embedding, LSTM, LayerNormalization, MatMul: ``ids`` (N, T) int64 -> ``logits`` (T, N, words)."""
    rng = np.random.default_rng(seed)
    hidden = 6
    constants = {
        "table": _weight(rng, words, width),
        "lstm.w": _weight(rng, 1, 4 * hidden, width),
        "lstm.r": _weight(rng, 1, 4 * hidden, hidden),
        "axes": np.array([1], np.int64),
        "ln.scale": np.ones(hidden, np.float32),
        "head": _weight(rng, hidden, words),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Transpose", ["e"], ["et"], name="time_first", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["et", "lstm.w", "lstm.r"], ["l"], name="lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["l", "axes"], ["s"], name="squeeze"),
        helper.make_node("LayerNormalization", ["s", "ln.scale"], ["n"], name="ln"),
        helper.make_node("MatMul", ["n", "head"], ["logits"], name="head"),
    ]
    ids, logits = ("ids", TensorProto.INT64, ["N", "T"]), ("logits", FLOAT, ["T", "N", words])
    return build(nodes, [ids], [logits], constants)


def with_external_data(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write a model with all its constants in one external file ``weights.bin`` and return its path."""
    path = folder / name
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=False,
    )
    return path
