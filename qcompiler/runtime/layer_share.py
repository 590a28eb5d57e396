"""What runs in integers, read from the execution graph of a runtime that is not ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from qcompiler.records import IntegerShare
from qcompiler.runtime.optimized import COMPUTE_OPS, Origins, node_macs

COMPUTE_LAYERS = COMPUTE_OPS | {"Convolution", "Deconvolution", "FullyConnected", "RNNSeq", "RNNCell"}
"""Compute operators by their ONNX names and by OpenVINO's."""


def layer_share(layers: Sequence[tuple[Sequence[str], str, bool]], planned: ir.Model) -> IntegerShare:
    """Return how much of a model's compute a runtime runs in integers.

    Args:
        layers: names in the model, operator and whether it reads integers, of every node that really runs.
        planned: the float model that was lowered, for the names and sizes of its compute nodes.
    """
    macs = {n.name or "": node_macs(n) for n in planned.graph.all_nodes() if n.op_type in COMPUTE_OPS}
    origins = Origins(planned)
    compute = [layer for layer in layers if layer[1] in COMPUTE_LAYERS]
    integers: set[str] = set()
    floats: set[str] = set()
    for names, _, integer in compute:
        node = next((n for n in map(origins.find, names) if n is not None and n.op_type in COMPUTE_OPS), None)
        (integers if integer else floats).add(names[0] if node is None else node.name or "")
    return IntegerShare(
        compute_nodes=len(compute),
        integer_nodes=sum(integer for _, _, integer in compute),
        macs=sum(macs.values()),
        integer_macs=sum(macs[n] for n in integers if n in macs),
        float_nodes=tuple(sorted(floats)),
        runtime_ops=dict(sorted(Counter(op for _, op, _ in layers).items())),
    )
