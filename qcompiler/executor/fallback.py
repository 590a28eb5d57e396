"""Nodes that PyTorch has no kernel for: a session of ONNX Runtime for each, where gradients end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from qcompiler.errors import ModelError
from qcompiler.executor.operator import Kernel, Operator, to_torch
from qcompiler.model.edit import subgraphs
from qcompiler.model.save import to_proto
from qcompiler.runtime.sessions import one_line, open_session

if TYPE_CHECKING:
    import onnxruntime

IR_VERSION = 10


def runtime_kernel(op: Operator) -> Kernel:
    """Return a kernel that runs one node in ONNX Runtime; its outputs carry no gradient.

    When it is called, it raises ModelError where the node makes no tensors or does not run on what it is given,
    and RuntimeUnavailable where ONNX Runtime refuses the node.

    Raises:
        ModelError: the node holds graphs of its own.
    """
    node = op.node
    if any(True for _ in subgraphs(node)):
        raise ModelError(
            f"{node.op_type} '{node.name}' holds graphs of its own, which searches by loss do not enter; "
            "compile with -O1"
        )
    return _RuntimeKernel(op)


class _RuntimeKernel:
    """Opens its session at the first call, when the types of the inputs are known for certain."""

    def __init__(self, op: Operator) -> None:
        self._op, self._label = op, f"{op.node.op_type} '{op.node.name}'"
        self._sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}

    def __call__(self, *values: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        arrays = [None if v is None else v.detach().cpu().numpy() for v in values]
        types = tuple("" if a is None else a.dtype.name for a in arrays)
        if types not in self._sessions:
            self._sessions[types] = open_session(self._single(types), optimize=False)
        feeds = {f"input{i}": a for i, a in enumerate(arrays) if a is not None}
        try:
            found = iter(self._sessions[types].run(None, feeds))
        except Exception as error:  # the binding raises a dozen unrelated types
            raise ModelError(f"{self._label} does not run: {one_line(error)}") from error
        return tuple(self._tensor(next(found)) if v.name else None for v in self._op.node.outputs)

    def _tensor(self, value: Any) -> torch.Tensor:  # noqa: ANN401 - whatever the runtime returns
        if not isinstance(value, np.ndarray | np.generic):
            raise ModelError(f"{self._label} makes no tensors; compile with -O1")
        return to_torch(value, self._op.device)

    def _single(self, types: tuple[str, ...]) -> bytes:
        """Return a serialized model of the node alone, for inputs of these NumPy types."""
        node = self._op.node
        inputs = [
            ir.Value(name=f"input{i}", type=ir.TensorType(ir.DataType.from_numpy(np.dtype(kind)))) if kind else None
            for i, kind in enumerate(types)
        ]
        attributes = list(node.attributes.values())
        copy = ir.Node(node.domain, node.op_type, inputs, attributes=attributes, num_outputs=len(node.outputs))
        for index, value in enumerate(node.outputs):
            copy.outputs[index].name = f"output{index}" if value.name else ""
        graph = ir.Graph(
            [v for v in inputs if v is not None],
            [v for v in copy.outputs if v.name],
            nodes=[copy],
            opset_imports={node.domain: self._op.version},
            name="node",
        )
        content: bytes = to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
        return content
