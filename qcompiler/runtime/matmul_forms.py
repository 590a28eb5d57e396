"""The forms in which ONNX Runtime multiplies by a constant matrix, and what each costs on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompiler.codec.bits import BYTE_BITS, pack
from qcompiler.plan import Precision
from qcompiler.protocols import MatMulForm
from qcompiler.quant.grid import SMALLEST_SCALE
from qcompiler.runtime.sessions import open_session

FLOAT_FORM = MatMulForm(Precision.FLOAT)
SECONDS = 0.25
"""How long the forms of one shape are timed, together, unless a caller says otherwise."""
FEWEST_RUNS = 15
WARM_UP = 3
COLD_BYTES = 1 << 25
"""Weights of all copies together: more than the caches of a core hold, as in a network of many layers."""
MOST_COPIES = 24
_CLIPPED = {2: 1.9, 4: 2.9, 8: np.inf}
"""Deviations of a bell curve that a grid of so many bits covers at its best, about."""


@dataclass(frozen=True, slots=True, order=True)
class MatMulShape:
    """A product of (rows, inputs) by a constant (inputs, outputs)."""

    rows: int
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs


def form_model(form: MatMulForm, shape: MatMulShape, weight: NDArray[np.float32], copies: int = 1) -> onnx.ModelProto:
    """Return a model that multiplies ``x0`` by a weight in a given form into ``y0``, and so on for every copy.

    Args:
        form: how to multiply.
        shape: of the product.
        weight: float32 of shape (inputs, outputs).
        copies: of the product, each with an input and constants of its own, so that none of its work is shared.
    """
    writer = _Writer(shape)
    for number in range(copies):
        writer.add(form, weight, number)
    data, results = (
        [helper.make_tensor_value_info(f"{name}{n}", TensorProto.FLOAT, [shape.rows, size]) for n in range(copies)]
        for name, size in (("x", shape.inputs), ("y", shape.outputs))
    )
    graph = helper.make_graph(writer.nodes, "form", data, results, writer.constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def form_costs(
    forms: Sequence[MatMulForm], shape: MatMulShape, *, threads: int = 1, seconds: float = SECONDS
) -> dict[MatMulForm, float]:
    """Return the time of one product in every form, in microseconds: the fastest of many interleaved runs.

    With one thread it is processor time: what other programs take of the core does not count. The weights are too many
    for the caches, as those of a whole network are; a form that the runtime does not load is left out.

    Args:
        forms: what to time.
        shape: of the product.
        threads: of every session.
        seconds: how long to measure, together.
    """
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((shape.inputs, shape.outputs)).astype(np.float32)
    data = rng.standard_normal((shape.rows, shape.inputs)).astype(np.float32)
    copies = int(np.clip(COLD_BYTES // (4 * shape.weights), 1, MOST_COPIES))
    feeds = {f"x{n}": data for n in range(copies)}
    sessions: dict[MatMulForm, onnxruntime.InferenceSession] = {}
    for form in forms:
        try:
            sessions[form] = open_session(form_model(form, shape, weight, copies).SerializeToString(), threads=threads)
            sessions[form].run(None, feeds)
        except Exception:  # an old runtime without the operator: the binding raises a dozen unrelated types
            sessions.pop(form, None)
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(sessions, float("inf"))
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < FEWEST_RUNS:
        for form, session in sessions.items():
            started = clock()
            session.run(None, feeds)
            if turn >= WARM_UP:
                best[form] = min(best[form], clock() - started)
        turn += 1
    return {form: 1e6 * found / copies for form, found in best.items()}


def form_errors(forms: Sequence[MatMulForm], shape: MatMulShape) -> dict[MatMulForm, float]:
    """Return the error of every form on bell-shaped weights and inputs, relative to the float product (rms).

    Both parts of it are in there: rounded weights and, where a form rounds them, rounded inputs.
    """
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((shape.inputs, shape.outputs)).astype(np.float32)
    data = rng.standard_normal((shape.rows, shape.inputs)).astype(np.float32)
    exact = data.astype(np.float64) @ weight
    found = {}
    for form in forms:
        session = open_session(form_model(form, shape, weight).SerializeToString())
        (result,) = session.run(None, {"x0": data})
        found[form] = float(np.sqrt(np.mean((result - exact) ** 2) / np.mean(exact**2)))
    return found


def ratios(costs: Mapping[MatMulForm, float]) -> dict[MatMulForm, float]:
    """Return costs as multiples of the float product's."""
    return {form: cost / costs[FLOAT_FORM] for form, cost in costs.items()}


def _blocks(form: MatMulForm, weight: NDArray[np.float32]) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Return codes as MatMulNBits reads them, and a scale for every block."""
    size, half = form.block_size, 1 << (form.num_bits - 1)
    inputs, outputs = weight.shape
    blocks = -(-inputs // size)
    rows = np.pad(weight.T, ((0, 0), (0, blocks * size - inputs))).reshape(-1, size)
    deviations = _CLIPPED[form.num_bits] * np.sqrt(np.square(rows).mean(1))
    scale = np.maximum(np.minimum(np.abs(rows).max(1), deviations) / (half - 0.5), SMALLEST_SCALE)
    codes = np.clip(np.rint(rows / scale[:, None]) + half, 0, 2 * half - 1).astype(np.uint8)
    stored = pack(codes, form.num_bits).reshape(outputs, blocks, size * form.num_bits // BYTE_BITS)
    return stored, scale.astype(np.float32)


class _Writer:
    """Collects nodes and constants; all copies have the same content."""

    def __init__(self, shape: MatMulShape) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rounded: tuple[NDArray[np.generic], NDArray[np.float32]] | None = None

    def add(self, form: MatMulForm, weight: NDArray[np.float32], number: int) -> None:
        """Add one product."""
        match form.precision:
            case Precision.FLOAT:
                self._node("MatMul", [f"x{number}", self._constant(f"w{number}", weight)], f"y{number}")
            case Precision.BLOCKWISE:
                self._blockwise(form, weight, number)
            case Precision.DYNAMIC:
                self._dynamic(weight, number)
            case _:
                self._static(weight, number)

    def _blockwise(self, form: MatMulForm, weight: NDArray[np.float32], number: int) -> None:
        self.rounded = self.rounded or _blocks(form, weight)
        stored, scale = self.rounded
        constants = [self._constant(f"b{number}", stored), self._constant(f"s{number}", scale)]
        made = helper.make_node("MatMulNBits", [f"x{number}", *constants], [f"y{number}"], domain="com.microsoft")
        sizes = {"K": self.shape.inputs, "N": self.shape.outputs, "bits": form.num_bits}
        sizes["block_size"] = form.block_size
        sizes["accuracy_level"] = form.accuracy_level
        made.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
        self.nodes.append(made)

    def _dynamic(self, weight: NDArray[np.float32], number: int) -> None:
        codes, scale = self._codes(weight, number)
        names = [f"{part}{number}" for part in ("xq", "xs", "xz")]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [f"x{number}"], names))
        self._node("MatMulInteger", [names[0], codes, names[2]], f"p{number}")
        self.nodes.append(helper.make_node("Cast", [f"p{number}"], [f"c{number}"], to=TensorProto.FLOAT))
        self._node("Mul", [names[1], scale], f"f{number}")
        self._node("Mul", [f"c{number}", f"f{number}"], f"y{number}")

    def _static(self, weight: NDArray[np.float32], number: int) -> None:
        codes, scale = self._codes(weight, number)
        grid = [
            self._constant(f"gs{number}", np.asarray(8 / 255, np.float32)),
            self._constant(f"gz{number}", np.asarray(128, np.uint8)),
        ]
        self._node("QuantizeLinear", [f"x{number}", *grid], f"q{number}")
        self._node("DequantizeLinear", [f"q{number}", *grid], f"d{number}")
        restored = helper.make_node("DequantizeLinear", [codes, scale], [f"v{number}"], axis=1)
        self.nodes.append(restored)
        self._node("MatMul", [f"d{number}", f"v{number}"], f"y{number}")

    def _codes(self, weight: NDArray[np.float32], number: int) -> tuple[str, str]:
        if self.rounded is None:
            scale = (np.abs(weight).max(0) / 127).astype(np.float32)
            self.rounded = np.rint(weight / scale).astype(np.int8), scale
        codes, scale = self.rounded
        return self._constant(f"w{number}", codes), self._constant(f"ws{number}", scale)

    def _node(self, op_type: str, inputs: list[str], output: str) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output]))

    def _constant(self, name: str, array: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name
