"""Nets with one operator between integer convolutions: what a target's table says of it can be seen to hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.models import FLOAT, build

HALO = [1, 1, 1, 1]
BEFORE, OPERATOR, AFTER = "before", "operator", "after"
"""Names of the convolution before the operator, of the operator, and of the convolution behind it."""

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "AveragePool": {"kernel_shape": [3, 3], "pads": HALO},
    "Concat": {"axis": 1},
    "Gather": {"axis": 2},
    "LeakyRelu": {"alpha": 0.1},
    "MaxPool": {"kernel_shape": [2, 2]},
    "Resize": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "Transpose": {"perm": [0, 1, 3, 2]},
}
OPERANDS: dict[str, list[Any]] = {
    "Gather": [np.array([0, 3, 5])],
    "Pad": [np.array([0, 0, 1, 1, 0, 0, 1, 1])],
    "Reshape": [np.array([1, 16, 8, 32])],
    "Resize": [np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
    "Slice": [np.array([0]), np.array([8]), np.array([2])],
    "Squeeze": [np.array([0])],
    "Unsqueeze": [np.array([0])],
}
FLATTENING = frozenset({"Flatten", "Squeeze", "Unsqueeze"})
"""Operators behind which a Reshape makes an image again."""


def around(operator: str, seed: int = 0) -> onnx.ModelProto:
    """Return convolution(s), the operator, convolution; a Conv, Gemm or MatMul stands alone behind the first."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    constants = {"w1": weight(16, 8, 3, 3)}
    nodes = [helper.make_node("Conv", ["x", "w1"], ["a"], name=BEFORE, pads=HALO)]
    inputs, result = ["a"], "y"
    if operator in ("Add", "Mul", "Concat"):
        constants["w2"] = weight(16, 8, 3, 3)
        nodes.append(helper.make_node("Conv", ["x", "w2"], ["b"], name="beside", pads=HALO))
        inputs.append("b")
    if operator in ("Gemm", "MatMul"):
        nodes.append(helper.make_node("Flatten", ["a"], ["f"], name="flat"))
        constants["w"] = weight(16 * 16 * 16, 8)
        inputs = ["f", "w"]
    elif operator == "Conv":
        constants["w"] = weight(8, 16, 1, 1)
        inputs.append("w")
    for index, operand in enumerate(OPERANDS.get(operator, ())):
        constants[f"e{index}"] = operand
        inputs.append(f"e{index}")
    nodes.append(helper.make_node(operator, inputs, ["y"], name=OPERATOR, **ATTRIBUTES.get(operator, {})))
    if operator in FLATTENING:
        constants["image"] = np.array([1, 16, 16, 16])
        nodes.append(helper.make_node("Reshape", ["y", "image"], ["r"], name="image_again"))
        result = "r"
    if operator not in ("Conv", "Gemm", "MatMul"):
        constants["w3"] = weight(8, 32 if operator == "Concat" else 16, 3, 3)
        nodes.append(helper.make_node("Conv", [result, "w3"], ["z"], name=AFTER, pads=HALO))
        result = "z"
    rank = 2 if operator in ("Gemm", "MatMul") else 4
    model = build(nodes, [("x", FLOAT, [1, 8, 16, 16])], [(result, FLOAT, [None] * rank)], constants)
    return onnx.shape_inference.infer_shapes(model)
