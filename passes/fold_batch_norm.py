"""fold-batch-norm: fold BatchNormalization and constant Mul/Add into the convolution or matrix product before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.edit import add_initializer, clone, constant_of, fresh_name, take_over, value_names
from qcompiler.model.weights import has_row_bias, scales_operands
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import ChannelMoments, Context, Fact, State

Float64 = NDArray[np.float64]
Affine = tuple[Float64, Float64]
"""Per-channel factor and offset, each of shape (channels,)."""


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Makes ``y = factor * conv(x) + offset`` one convolution, and keeps what BatchNorm knew about y.

    BatchNorm's beta and |gamma| are the mean and the deviation of its output over the training data; they are
    kept as channel moments, from which activation ranges can be estimated without data.
    """

    name: ClassVar[str] = "fold-batch-norm"
    kind: ClassVar[PassKind] = PassKind.REWRITE
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.MOMENTS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES}
    )

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with the folded model and the moments that BatchNorm held."""
        model = clone(state.model)
        taken = value_names(model)
        moments = dict(state.moments)
        folded: list[str] = []
        skipped: list[Skip] = []
        for node in list(model.graph):
            affine = _affine(node)
            if affine is None:
                continue
            known = _moments(node)
            refusal = _refusal(node, affine)
            if refusal:
                if node.op_type == "BatchNormalization":
                    skipped.append(Skip(node.name or "", refusal))
            else:
                _fold(model.graph, node, affine, taken)
                folded.append(node.name or "")
            if known is not None:
                moments[node.outputs[0].name or ""] = known
        metrics = (Metric("folded", len(folded), "nodes"), Metric("channel moments", len(moments), "activations"))
        report = PassReport(name=self.name, changed=bool(folded), metrics=metrics, skipped=tuple(skipped))
        return PassResult(replace(state, model=model if folded else state.model, moments=moments), report)


def _affine(node: ir.Node) -> Affine | None:
    """Return the per-channel factor and offset that a node applies, or None if it is no such node."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "BatchNormalization" and len(node.inputs) >= 5:
        parts = [constant_of(v) for v in node.inputs[1:5]]
        if any(p is None for p in parts):
            return None
        gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parts)
        epsilon = node.attributes.get("epsilon")
        factor = gamma / np.sqrt(variance + (epsilon.as_float() if epsilon is not None else 1e-5))
        return factor, beta - mean * factor
    if node.op_type in ("Add", "Mul"):
        return _constant_operand(node)
    return None


def _constant_operand(node: ir.Node) -> Affine | None:
    sides = [(constant_of(v), node.inputs[1 - i]) for i, v in enumerate(node.inputs)]
    for constant, data in sides:
        producer = data.producer() if data is not None else None
        if constant is None or constant.dtype.kind != "f" or producer is None:
            continue
        channels = _channels(producer)
        flat = _per_channel(constant, producer, channels)
        if flat is None:
            continue
        return (np.ones(channels), flat) if node.op_type == "Add" else (flat, np.zeros(channels))
    return None


def _channels(producer: ir.Node) -> int:
    """Return how many output channels a layer with constant weights has, 0 for any other node."""
    weight = producer.inputs[1] if len(producer.inputs) > 1 else None
    if weight is None or weight.const_value is None or producer.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    shape = weight.const_value.shape.numpy()
    if len(shape) < 2 or producer.domain not in ("", "ai.onnx"):
        return 0
    return shape[0] if producer.op_type == "Conv" or _transposed(producer) else shape[-1]


def _per_channel(constant: NDArray[np.generic], producer: ir.Node, channels: int) -> Float64 | None:
    """Return a constant as one value per output channel, or None if it varies along another axis."""
    output = producer.outputs[0].shape
    if channels == 0 or output is None or constant.ndim > len(output):
        return None
    if constant.size == 1:
        return np.full(channels, float(constant.reshape(-1)[0]))
    padded = [1] * (len(output) - constant.ndim) + list(constant.shape)
    axis = 1 if producer.op_type == "Conv" else -1
    return constant.astype(np.float64).reshape(-1) if padded[axis] == constant.size == channels else None


def _moments(node: ir.Node) -> ChannelMoments | None:
    if node.op_type != "BatchNormalization":
        return None
    gamma, beta = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    if gamma is None or beta is None:
        return None
    return ChannelMoments(mean=np.asarray(beta, np.float64), std=np.abs(np.asarray(gamma, np.float64)))


def _refusal(node: ir.Node, affine: Affine) -> str:
    data = next((v for v in node.inputs if v is not None and v.const_value is None), None)
    producer = data.producer() if data is not None else None
    if data is None or producer is None or producer.op_type not in ("Conv", "Gemm", "MatMul"):
        return "no convolution or matrix product before it"
    if len(data.uses()) > 1 or data.is_graph_output():
        return "the value before it is used elsewhere too"
    if _channels(producer) != affine[0].size:
        return "weights are not constant"
    training = node.attributes.get("training_mode")
    if training is not None and training.as_int():
        return "it is in training mode"
    if producer.op_type == "MatMul" and not _is_matrix_product(producer):
        if node.op_type == "BatchNormalization":
            return "its channels are not those of the batched MatMul before it"
        if affine[1].any():
            return "a batched MatMul holds no offset"
    if scales_operands(producer):
        return "the Gemm scales its operands"
    weight = producer.inputs[1]
    if weight is None or len(weight.uses()) > 1:
        return "its weights are shared with another node"
    if not has_row_bias(producer):
        return "the bias is not one constant per channel"
    return ""


def _fold(graph: ir.Graph, node: ir.Node, affine: Affine, taken: set[str]) -> None:
    """Move the affine step into the weights and bias of the producer, and take the node out of the graph."""
    factor, offset = affine
    data = next(v for v in node.inputs if v is not None and v.const_value is None)
    producer = data.producer()
    if producer is None:
        return
    value, weight = producer.inputs[1], constant_of(producer.inputs[1])
    if value is None or weight is None:
        return
    dtype, others = weight.dtype, (1,) * (weight.ndim - 1)
    shape = (-1, *others) if producer.op_type == "Conv" or _transposed(producer) else (*others, -1)
    if (factor != 1.0).any():
        scaled = (weight.astype(np.float64) * factor.reshape(shape)).astype(dtype)
        name = fresh_name(taken, f"{value.name}_folded")
        producer.replace_input_with(1, add_initializer(graph, name, scaled))
    old = producer.inputs[2] if len(producer.inputs) > 2 else None
    base = np.zeros(factor.size) if old is None else np.asarray(constant_of(old), np.float64).reshape(-1)
    bias = base * factor + offset
    if old is not None or bias.any():
        producer.resize_inputs(3)
        name = fresh_name(taken, f"{producer.name}_bias")
        producer.replace_input_with(2, add_initializer(graph, name, bias.astype(dtype)))
    if producer.op_type == "MatMul" and len(producer.inputs) > 2:
        producer = _as_gemm(graph, producer)
    take_over(node, producer.outputs[0])


def _is_matrix_product(node: ir.Node) -> bool:
    shapes = [v.shape if v is not None else None for v in node.inputs[:2]]
    return all(s is not None and len(s) == 2 for s in shapes)


def _as_gemm(graph: ir.Graph, product: ir.Node) -> ir.Node:
    """Replace a matrix product that got an offset by a Gemm of the same name, and return that."""
    gemm = ir.node("Gemm", list(product.inputs), name=product.name)
    graph.insert_after(product, gemm)
    take_over(product, gemm.outputs[0])
    return gemm


def _transposed(producer: ir.Node) -> bool:
    flag = producer.attributes.get("transB")
    return producer.op_type == "Gemm" and flag is not None and bool(flag.as_int())
