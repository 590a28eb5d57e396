"""One node as the operator table sees it: attributes with defaults, the version of the operator, the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

Kernel = Callable[..., Any]
"""Called with one tensor (None where it is absent) per input; returns a tensor, or a tuple of one per output."""

Maker = Callable[["Operator"], "Kernel | None"]
"""Returns the kernel of a node; None where this form of the operator is left to ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A node, with what is needed to make a kernel of it.

    Attributes:
        node: the node; only attributes, types and the number of inputs and outputs are looked at.
        version: the opset of the node's domain.
        device: where floating-point tensors live; integers live on the CPU.
    """

    node: ir.Node
    version: int
    device: torch.device

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else int(found.as_int())

    def number(self, name: str, default: float) -> float:
        """Return a float attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else float(found.as_float())

    def text(self, name: str, default: str) -> str:
        """Return a text attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else str(found.as_string())

    def integers(self, name: str) -> list[int] | None:
        """Return a list of integers, None where the node has no such attribute."""
        found = self.node.attributes.get(name)
        return None if found is None else [int(i) for i in found.as_ints()]

    def tensor(self, name: str) -> torch.Tensor | None:
        """Return a tensor attribute, on the device if it is a float; None where the node has no such attribute."""
        found = self.node.attributes.get(name)
        return None if found is None else to_torch(found.as_tensor().numpy(), self.device)

    @property
    def outputs(self) -> int:
        """Return the number of outputs up to the last one that is used."""
        used = [i for i, v in enumerate(self.node.outputs) if v.name and (v.uses() or v.is_graph_output())]
        return 1 + max(used, default=0)


def to_torch(array: Any, device: torch.device) -> torch.Tensor:  # noqa: ANN401 - NumPy arrays of any type
    """Return a copy of an array as a tensor: floating-point ones on the device, others on the CPU.

    Raises:
        TypeError: PyTorch has no such type.
    """
    tensor = torch.tensor(array)
    return tensor.to(device) if tensor.is_floating_point() else tensor


def has_one_row(op: Operator) -> bool:
    """Return True if the file says that the first dimension of a node's first input is 1: a batch fixed at 1."""
    data = op.node.inputs[0]
    return data is not None and data.shape is not None and len(data.shape) > 0 and data.shape[0] == 1


def plain(function: Callable[..., Any]) -> Maker:
    """Return the maker of an operator without attributes."""
    return lambda _: function
