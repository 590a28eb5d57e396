"""Interval arithmetic on activations: what a value can never exceed, whatever the input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.model.edit import constant_of

Interval = tuple[float, float]
EVERYTHING: Interval = (-np.inf, np.inf)
KEEPS = frozenset({"MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Identity"})
"""Operators whose outputs lie between the smallest and the largest input."""
MAX_DEPTH = 8


def never_clips(clip: ir.Node) -> bool:
    """Return True if a Clip with a lower limit of 0 provably never reaches its upper limit: it is a Relu then."""
    low, high = clip_limits(clip)
    value = clip.inputs[0]
    return low == 0.0 and value is not None and interval(value)[1] <= high


def interval(value: ir.Value, depth: int = 0) -> Interval:
    """Return an interval that holds every element of a value."""
    node = value.producer()
    if node is None or depth > MAX_DEPTH or not node.inputs or node.inputs[0] is None:
        return EVERYTHING
    if node.op_type in ("Sigmoid", "Softmax", "HardSigmoid"):
        return 0.0, 1.0
    if node.op_type == "Tanh":
        return -1.0, 1.0
    low, high = interval(node.inputs[0], depth + 1)
    if node.op_type == "AveragePool":  # padding may count as 0
        return min(low, 0.0), max(high, 0.0)
    if node.op_type == "Relu":
        return max(low, 0.0), max(high, 0.0)
    if node.op_type == "Clip":
        least, most = clip_limits(node)
        return float(np.clip(low, least, most)), float(np.clip(high, least, most))
    if node.op_type in KEEPS:
        return low, high
    if node.op_type == "Conv" and np.isfinite([low, high]).all():
        return _convolved(node, min(low, 0.0), max(high, 0.0))
    return EVERYTHING


def _convolved(node: ir.Node, low: float, high: float) -> Interval:
    """Return the interval behind a convolution; padding adds 0 to the inputs."""
    weight = constant_of(node.inputs[1])
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
    if weight is None or bias is None:
        return EVERYTHING
    rows = np.asarray(weight, np.float64).reshape(weight.shape[0], -1)
    up, down = np.maximum(rows, 0.0).sum(1), np.minimum(rows, 0.0).sum(1)
    return float((up * low + down * high + bias).min()), float((up * high + down * low + bias).max())


def clip_limits(clip: ir.Node) -> Interval:
    """Return the limits of a Clip; one that is computed at run time counts as missing."""
    found = [constant_of(v) if v is not None else None for v in clip.inputs[1:3]]
    low = found[0] if found else None
    high = found[1] if len(found) > 1 else None
    return (
        -np.inf if low is None else float(low.reshape(-1)[0]),
        np.inf if high is None else float(high.reshape(-1)[0]),
    )
