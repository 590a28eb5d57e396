"""Which values of a model are compared with those of another: the outputs, or what is before a squashing function."""

from __future__ import annotations

import onnx_ir as ir

SQUASHING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


def measured_values(model: ir.Model) -> list[str]:
    """Return the value that is compared for every float output: logits where the output is probabilities.

    Behind a Softmax the error of a few undecided samples outweighs all others, and a search on few samples
    would follow those.
    """
    found = []
    for value in model.graph.outputs:
        if not isinstance(value.type, ir.TensorType) or value.dtype not in FLOATS:
            continue
        producer = _made_by(value)
        squashed = producer.inputs[0] if producer is not None and producer.op_type in SQUASHING else None
        if squashed is not None and squashed.const_value is None:
            value = squashed
        found.append(value.name or "")
    return found


def _made_by(value: ir.Value) -> ir.Node | None:
    """Return the node that makes a value, or what is before the Q/DQ pair that makes it."""
    node = value.producer()
    for step in ("DequantizeLinear", "Clip", "QuantizeLinear"):
        coded = step != "Clip" or (node is not None and node.outputs[0].dtype is ir.DataType.UINT8)
        if node is not None and node.op_type == step and coded and node.inputs[0] is not None:
            node = node.inputs[0].producer()
    return node
