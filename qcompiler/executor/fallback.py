"""Nodes that PyTorch has no kernel for: a session of ONNX Runtime for each, where gradients end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from qcompiler.errors import ModelError
from qcompiler.executor.operator import Kernel, Operator, to_torch
from qcompiler.model.edit import subgraphs
from qcompiler.model.save import to_proto
from qcompiler.runtime.sessions import one_line, open_session

IR_VERSION = 10


def runtime_kernel(op: Operator) -> Kernel:
    """Return a kernel that runs one node in ONNX Runtime; its outputs carry no gradient.

    Raises:
        ModelError: the node holds graphs, or what it reads or makes are no tensors that PyTorch has.
        RuntimeUnavailable: ONNX Runtime refuses the node.
    """
    node = op.node
    if any(True for _ in subgraphs(node)):
        raise ModelError(
            f"{node.op_type} '{node.name}' holds graphs of its own, which searches by loss do not enter; "
            "compile with -O1"
        )
    given = [i for i, v in enumerate(node.inputs) if v is not None]
    kept = [i for i, v in enumerate(node.outputs) if v.name]
    session = open_session(_single(op), optimize=False)

    def kernel(*values: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        feeds = {}
        for index in given:
            value = values[index]
            if value is not None:
                feeds[f"input{index}"] = value.detach().cpu().numpy()
        try:
            found = session.run(None, feeds)
        except Exception as error:  # the binding raises a dozen unrelated types
            raise ModelError(f"{node.op_type} '{node.name}' does not run: {one_line(error)}") from error
        made: list[torch.Tensor | None] = [None] * len(node.outputs)
        for index, value in zip(kept, found, strict=True):
            if not isinstance(value, np.ndarray | np.generic):
                raise ModelError(f"{node.op_type} '{node.name}' makes no tensors; compile with -O1")
            made[index] = to_torch(value, op.device)
        return tuple(made)

    return kernel


def _single(op: Operator) -> bytes:
    """Return a serialized model of one node."""
    node = op.node
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            inputs.append(None)
            continue
        if not isinstance(value.type, ir.TensorType):
            kind = "of an unknown type" if value.type is None else "no tensor"
            raise ModelError(f"{node.op_type} '{node.name}' reads '{value.name}', which is {kind}; compile with -O1")
        inputs.append(ir.Value(name=f"input{index}", type=value.type, shape=None))
    copy = ir.Node(
        node.domain, node.op_type, inputs, attributes=list(node.attributes.values()), num_outputs=len(node.outputs)
    )
    for index, value in enumerate(node.outputs):
        copy.outputs[index].name = f"output{index}" if value.name else ""
        copy.outputs[index].type = value.type
    graph = ir.Graph(
        [v for v in inputs if v is not None],
        [v for v in copy.outputs if v.name],
        nodes=[copy],
        opset_imports={node.domain: op.version},
        name="node",
    )
    content: bytes = to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    return content
