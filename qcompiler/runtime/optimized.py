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
_SUFFIXES = re.compile(r"(_integer|_token_\d+|_nchwc|_fused|_quant|/MatMulAddFusion|_DynamicQuantizeMatMul.*)$")


def integer_share(optimized: Path, original: ir.Model) -> IntegerShare:
    """Return how much of the original's compute the runtime runs in integers.

    Args:
        optimized: the optimized graph of the compiled model, saved by the runtime.
        original: the float model, for the names and sizes of its compute nodes.
    """
    macs = {n.name or "": node_macs(n) for n in original.graph.all_nodes() if n.op_type in COMPUTE_OPS}
    by_output = {o.name: n.name or "" for n in original.graph.all_nodes() for o in n.outputs if o.name}
    counts: Counter[str] = Counter()
    integers: set[str] = set()
    floats: list[str] = []
    integer_nodes = 0
    for node in _nodes(onnx.load(str(optimized), load_external_data=False).graph):
        counts[node.op_type] += 1
        name = _origin(node, macs, by_output)
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
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _origin(node: onnx.NodeProto, known: Mapping[str, int], by_output: Mapping[str, str]) -> str:
    """Return the original node behind a node of the optimized graph, "" if it is the runtime's own."""
    return origin_of(node.name, known, by_output) or next(
        (o for output in node.output if (o := origin_of(output, known, by_output))), ""
    )


def origin_of(name: str, known: Mapping[str, object], by_output: Mapping[str, str]) -> str:
    """Return the original node that a name of the runtime's graph stands for, "" if none.

    Args:
        name: node or value name in the optimized graph or in a profile.
        known: original node names.
        by_output: original output value -> its node.
    """
    while name:
        if name in known:
            return name
        for value in (name, re.sub(r"_(q|dq|f)$", "", name)):
            if value in by_output:
                return by_output[value]
        shorter = _SUFFIXES.sub("", name)
        if shorter == name:
            return ""
        name = shorter
    return ""


def node_macs(node: ir.Node) -> int:
    """Return the multiply-accumulates of one run of a compute node; unknown dimensions count as 1."""
    output = node.outputs[0].shape
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if output is None or weight is None or weight.shape is None:
        return 0
    produced = int(np.prod([d if isinstance(d, int) else 1 for d in output]))
    dims = [d if isinstance(d, int) else 1 for d in weight.shape]
    if node.op_type == "Conv":
        return produced * int(np.prod(dims[1:]))
    if node.op_type == "MatMul":
        return produced * (dims[-2] if len(dims) > 1 else dims[0])
    if node.op_type == "Gemm":
        flag = node.attributes.get("transB")
        return produced * (dims[1] if flag is not None and flag.as_int() else dims[0])
    return int(np.prod(dims))


RUNTIME_INSERTED = "(inserted by the runtime)"


FOLLOWERS = frozenset({"Relu", "Clip", "BatchNormalization", "LeakyRelu"})
"""Operators that the runtime fuses into the compute node before them, and whose name the fused node may get."""


def node_times(
    nodes: Mapping[str, Sequence[tuple[str, str, float]]], original: ir.Model, planned: ir.Model
) -> tuple[LayerTime, ...]:
    """Return the time of every node before and after, from the runtime's profiles, longest first.

    Args:
        nodes: "original" and "result" -> (name in the runtime's graph, operator, microseconds).
        original: the float model as it was loaded.
        planned: the rewritten float model. What the runtime added and belongs to no node is one row of its own.
    """
    spent: dict[str, dict[str, float]] = {}
    types: dict[str, str] = {}
    for kind, model in (("original", original), ("result", planned)):
        known = {n.name or "": n for n in model.graph.all_nodes()}
        by_output = {o.name: n.name or "" for n in known.values() for o in n.outputs if o.name}
        for name, _, microseconds in nodes.get(kind, ()):
            node = known.get(origin_of(name, known, by_output))
            while node is not None and (before := _fused_into(node)) is not None:
                node = before
            origin = node.name or "" if node is not None else RUNTIME_INSERTED
            types.setdefault(origin, node.op_type if node is not None else "")
            row = spent.setdefault(origin, {})
            row[kind] = row.get(kind, 0.0) + microseconds
    return tuple(
        LayerTime(
            name=name,
            op_type=types[name],
            before_us=spent[name].get("original"),
            after_us=spent[name].get("result"),
        )
        for name in sorted(spent, key=lambda n: (-max(spent[n].values()), n))
    )


def _fused_into(node: ir.Node) -> ir.Node | None:
    """Return the compute node that a follower is fused into, if it is one."""
    value = node.inputs[0] if node.op_type in FOLLOWERS and node.inputs else None
    before = value.producer() if value is not None else None
    fits = before is not None and (before.op_type in COMPUTE_OPS or before.op_type in FOLLOWERS)
    return before if fits and value is not None and len(value.uses()) == 1 else None
