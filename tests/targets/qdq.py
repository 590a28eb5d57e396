"""Q/DQ graphs made by hand, to ask ONNX Runtime what it fuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from tests.models import FLOAT, build

SCALE, ZERO = np.float32(0.05), np.uint8(128)


class Graph:
    """Collects nodes and constants; every method returns the name of the value it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"{op.lower()}{len(self.nodes)}" + ("" if i == 0 else f"_{i}") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
        return names[0]

    def constant(self, array: np.ndarray) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def pair(self, value: str, *, zero_point: bool = True, scale: float = SCALE, zero: int = int(ZERO)) -> str:
        """Quantize a value and decode it again."""
        grid = [self.constant(np.float32(scale))]
        if zero_point:
            grid.append(self.constant(np.uint8(zero)))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *grid), *grid)

    def weight(self, shape: Sequence[int], axis: int | None, *, zero_point: bool = False) -> str:
        """Decode random int8 weights, with one scale per index of ``axis``."""
        rng = np.random.default_rng(0)
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        count = () if axis is None else (shape[axis],)
        grid = [self.constant(rng.uniform(0.005, 0.01, count).astype(np.float32))]
        if zero_point:
            grid.append(self.constant(np.zeros(count, np.int8)))
        attributes = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", self.constant(codes), *grid, **attributes)

    def bias(self, weight: str) -> str:
        """Decode an int32 bias, with the scale of the input times that of a decoded weight."""
        decode = next(n for n in self.nodes if n.output[0] == weight)
        scale = self.constants[decode.input[1]] * SCALE
        codes = np.arange(scale.size, dtype=np.int32)
        return self.node("DequantizeLinear", self.constant(codes), self.constant(scale), axis=0)

    def model(self, last: str, shape: Sequence[int]) -> onnx.ModelProto:
        """Return the model from ``x`` to a value."""
        nodes = [*self.nodes, helper.make_node("Identity", [last], ["y"])]
        used = {i for n in nodes for i in n.input}
        constants = {k: v for k, v in self.constants.items() if k in used}
        proto = build(nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)], constants)
        return onnx.shape_inference.infer_shapes(proto)
