"""What really runs in integers, read from the graph that ONNX Runtime made of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from qcompiler.records import IntegerShare, LayerTime
from qcompiler.runtime.gate_process import ProfiledNode

INTEGER_OPS = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "MatMulNBits",
        "QAttention",
        "DynamicQuantizeLSTM",
    }
)
FLOAT_OPS = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "RNN"}
)
COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
UNPACKING = frozenset(
    {
        *("Add", "Cast", "Concat", "ConstantOfShape", "CumSum", "Div", "Expand", "Gather", "MatMul", "MatMulInteger"),
        *("Mod", "Mul", "Range", "Reshape", "ScatterElements", "Slice", "Sub", "Transpose", "Xor"),
    }
)
"""Operators that unpack stored weights, where all their inputs are constant."""
_SUFFIXES = re.compile(
    r"(_integer|_token_\d+|_nchwc|_fused|_quant|/MatMulAddFusion|_DynamicQuantizeMatMul.*"
    r"|/WithoutBiases|/Dequantization\w+|/transpose_b|_original)$"
)
"""What ONNX Runtime and, in the last line, OpenVINO append to the names of nodes."""


class Origins:
    """Finds the node of a model that a name in the runtime's graph stands for."""

    def __init__(self, model: ir.Model) -> None:
        self._by_name = {n.name or "": n for n in model.graph.all_nodes()}
        self._by_output = {o.name: n for n in self._by_name.values() for o in n.outputs if o.name}

    def find(self, *names: str) -> ir.Node | None:
        """Return the node behind the first name that is known, None if all are the runtime's own.

        What is fused into a compute node counts as that node, because the fused node may have either name.

        Args:
            names: node or value names in the optimized graph or in a profile.
        """
        for name in names:
            node = self._find_one(name)
            while node is not None and (before := _fused_into(node)) is not None:
                node = before
            if node is not None:
                return node
        return None

    def _find_one(self, name: str) -> ir.Node | None:
        while name:
            bare = re.sub(r"_(q|dq|f)$", "", name)
            found = self._by_name.get(name) or self._by_output.get(name) or self._by_output.get(bare)
            shorter = _SUFFIXES.sub("", name)
            if found is not None or shorter == name:
                return found
            name = shorter
        return None


FOLLOWERS = frozenset({"Relu", "Clip", "BatchNormalization", "LeakyRelu"})
"""Operators that the runtime fuses into the compute node before them."""


def _fused_into(node: ir.Node) -> ir.Node | None:
    """Return the node that a follower is fused into, if it is one."""
    value = node.inputs[0] if node.op_type in FOLLOWERS and node.inputs else None
    before = value.producer() if value is not None else None
    fits = before is not None and (before.op_type in COMPUTE_OPS or before.op_type in FOLLOWERS)
    return before if fits and value is not None and len(value.uses()) == 1 else None


def integer_share(optimized: Path, planned: ir.Model) -> IntegerShare:
    """Return how much of a model's compute the runtime runs in integers.

    Args:
        optimized: the optimized graph of the compiled model, saved by the runtime.
        planned: the float model that was lowered, for the names and sizes of its compute nodes.
    """
    macs = {n.name or "": node_macs(n) for n in planned.graph.all_nodes() if n.op_type in COMPUTE_OPS}
    origins = Origins(planned)
    counts: Counter[str] = Counter()
    integers: set[str] = set()
    floats: list[str] = []
    integer_nodes = 0
    graph = onnx.load(str(optimized), load_external_data=False).graph
    for node in _nodes(graph):
        counts[node.op_type] += 1
        origin = origins.find(node.name, *node.output)
        name = origin.name or "" if origin is not None else ""
        if node.op_type in INTEGER_OPS:
            integer_nodes += 1
            integers.add(name)
        elif node.op_type in FLOAT_OPS:
            floats.append(name or node.name or node.output[0])
    return IntegerShare(
        compute_nodes=integer_nodes + len(floats),
        integer_nodes=integer_nodes,
        macs=sum(macs.values()),
        integer_macs=sum(macs[n] for n in integers if n in macs),
        float_nodes=tuple(sorted(set(floats))),
        runtime_ops=dict(sorted(counts.items())),
        unfolded=tuple(_unfolded(graph)),
    )


def _unfolded(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the first output of every node that follows from stored bytes and other constants alone.

    Unpacking is such a node, and the runtime should have computed it when it loaded the session.
    """
    constants = {t.name: t.data_type == onnx.TensorProto.UINT8 for t in graph.initializer}
    for node in graph.node:
        inputs = [constants.get(name) for name in node.input if name]
        if inputs and None not in inputs and node.op_type in UNPACKING:
            from_bytes = any(inputs)
            constants |= dict.fromkeys(node.output, from_bytes)
            if from_bytes:
                yield node.output[0]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def node_macs(node: ir.Node) -> int:
    """Return the multiply-accumulates of one run of a compute node; unknown dimensions count as 1."""
    output = node.outputs[0].shape
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if output is None or weight is None or weight.shape is None:
        return 0
    produced, dims = int(np.prod(_sizes(output))), _sizes(weight.shape)
    if node.op_type == "ConvTranspose":  # every input element meets every weight of its channel
        data = node.inputs[0].shape if node.inputs[0] is not None else None
        return int(np.prod(_sizes(data))) * int(np.prod(dims[1:])) if data is not None else 0
    if node.op_type == "Conv":
        return produced * int(np.prod(dims[1:]))
    if node.op_type == "MatMul":
        return produced * (dims[-2] if len(dims) > 1 else dims[0])
    if node.op_type == "Gemm":
        flag = node.attributes.get("transB")
        return produced * (dims[1] if flag is not None and flag.as_int() else dims[0])
    return int(np.prod(dims))


def _sizes(shape: ir.Shape) -> list[int]:
    return [d if isinstance(d, int) else 1 for d in shape]


RUNTIME_INSERTED = "(inserted by the runtime)"


def node_times(
    nodes: Mapping[str, Sequence[ProfiledNode]], original: ir.Model, planned: ir.Model
) -> tuple[LayerTime, ...]:
    """Return the time of every node before and after, from the runtime's profiles, longest first.

    Args:
        nodes: "original" and "result" -> the nodes of the runtime's graph.
        original: the float model as it was loaded.
        planned: the rewritten float model. What the runtime added is one row of its own.
    """
    spent: dict[str, dict[str, float]] = {}
    types: dict[str, str] = {RUNTIME_INSERTED: ""}
    for kind, model in (("original", original), ("result", planned)):
        origins = Origins(model)
        for profiled in nodes.get(kind, ()):
            node = origins.find(profiled.name)
            origin = node.name or "" if node is not None else RUNTIME_INSERTED
            if node is not None:
                types.setdefault(origin, node.op_type)
            row = spent.setdefault(origin, {})
            row[kind] = row.get(kind, 0.0) + profiled.typical_us
    return tuple(
        LayerTime(
            name=name,
            op_type=types[name],
            before_us=spent[name].get("original"),
            after_us=spent[name].get("result"),
        )
        for name in sorted(spent, key=lambda n: (-max(spent[n].values()), n))
    )
