"""What a run of the executor replaces: weights, values on their way to their readers, biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from qcompiler.errors import QCompileError
from qcompiler.lowering import weight_codes
from qcompiler.model.weights import has_row_bias, weight_operands
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.quant.grid import along
from qcompiler.state import State

if TYPE_CHECKING:
    from qcompiler.executor.executor import TorchExecutor

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Binding:
    """Replacements for one run; everything else stays as it is in the float model.

    Attributes:
        parameters: constant's name -> the tensor that stands for it.
        values: value name -> function that is applied where the value is read, once for all its readers.
        readers: value name -> the nodes that see what its function returns, "" for the graph's outputs; a value
            that is not in here is changed for all.
        inputs: node name -> {input number -> function of what the node reads there, after ``values``}.
        biases: node name -> what is added to the bias of a Conv or Gemm, shape (channels,).
    """

    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    values: Mapping[str, Function] = field(default_factory=dict)
    readers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[int, Function]] = field(default_factory=dict)
    biases: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def is_seen_by(self, value: str, reader: str) -> bool:
        """Return True if a node, or "" for the graph's outputs, reads what the value's function returns."""
        chosen = self.readers.get(value)
        return chosen is None or reader in chosen


EMPTY = Binding()
"""The float model."""


@dataclass(frozen=True, slots=True, eq=False)
class FakeQuantize:
    """Rounds to a grid as QuantizeLinear and DequantizeLinear do; the gradient is 1 inside the grid, 0 outside.

    Attributes:
        scale: float32, shape ().
        low / high: smallest and largest code, less the zero point.

    Source: Bengio, Leonard, Courville 2013, Estimating or Propagating Gradients Through Stochastic Neurons
    (arXiv:1308.3432), the straight-through estimator.
    """

    scale: torch.Tensor
    low: float
    high: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest values of the grid, exactly, whatever the gradient."""
        found: torch.Tensor = _OnGrid.apply(x, self)
        return found

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest values of the grid, without a gradient."""
        return torch.div(x, self.scale).round_().clamp_(self.low, self.high).mul_(self.scale)

    @property
    def reach(self) -> tuple[float, float]:
        """What rounds to the two ends of the grid without being clipped: half a step beyond them."""
        scale = float(self.scale)
        return scale * (self.low - 0.5), scale * (self.high + 0.5)


class _OnGrid(torch.autograd.Function):  # type: ignore[misc]
    """Rounding to a grid; it keeps its input alone, and its gradient is one operation."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, grid: FakeQuantize) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.reach = grid.reach
        return grid.nearest(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, *ctx.reach), None


def fake_quantize_rows(x: torch.Tensor) -> torch.Tensor:
    """Return what DynamicQuantizeLinear makes of every row (axis 0) alone, decoded; straight through for gradients.

    In the runtime one tensor has one scale: this is what it computes for samples that come one by one.
    """
    with torch.no_grad():
        axes = list(range(1, x.dim())) or [0]
        low = x.amin(axes, keepdim=True).clamp_(max=0.0)
        high = x.amax(axes, keepdim=True).clamp_(min=0.0)
        scale = (high - low) / DYNAMIC_CODES
        scale = torch.where(scale == 0.0, torch.ones_like(scale), scale)
        zero = torch.div(-low, scale).round_().clamp_(0, DYNAMIC_CODES)
        codes = (torch.div(x, scale).round_() + zero).clamp_(0, DYNAMIC_CODES)
        rounded = (codes - zero).mul_(scale)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    return rounded + (x - x.detach())


DYNAMIC_CODES = 255
INTEGER = (Precision.INTEGER, Precision.MOVE)


Decoded = dict[str, tuple[TensorPlan, torch.Tensor]]
"""Weights by name, with the entry that each was decoded from; entries of a plan never change, they are replaced."""


def binding_of(state: State, executor: TorchExecutor, decoded: Decoded | None = None) -> Binding:
    """Return the simulation of a planned state: what its lowered graph computes, in float arithmetic.

    Weights and tables are decoded from their planned codes, activations take the values of their grids wherever the
    lowered graph has a QuantizeLinear, biases have their corrections, and what is quantized at run time is so row by
    row.
    Values whose scale is still missing stay float.

    Args:
        state: with a plan for the nodes of ``executor.model``.
        executor: of the same float graph.
        decoded: what earlier bindings decoded; weights whose entries are still the same are taken from there, and
            others put there.

    Raises:
        QCompileError: a weight is planned without a grid.
    """
    return _Simulation(state.plan, executor, {} if decoded is None else decoded).binding()


class _Simulation:
    """Follows what the lowering passes write: insert-qdq, insert-dynamic, matmul-nbits and pack-weights.

    What blockwise products round of their inputs is left out: it is far less than what the others do.
    """

    def __init__(self, plan: CompressionPlan, executor: TorchExecutor, decoded: Decoded) -> None:
        self._plan, self._executor, self._decoded = plan, executor, decoded
        self._nodes = list(executor.model.graph)

    def binding(self) -> Binding:
        values, readers = self._activations()
        parameters, inputs = self._weights()
        for node in self._nodes:
            if self._precision(node) is Precision.DYNAMIC and self._planned_weight(node, 1) is not None:
                inputs.setdefault(node.name or "", {})[0] = fake_quantize_rows
        return Binding(parameters=parameters, values=values, readers=readers, inputs=inputs, biases=self._biases())

    def _precision(self, node: ir.Node | None) -> Precision:
        entry = self._plan.nodes.get(node.name or "") if node is not None else None
        return Precision.FLOAT if entry is None else entry.precision

    def _activations(self) -> tuple[dict[str, Function], dict[str, frozenset[str]]]:
        values, readers = dict[str, Function](), dict[str, frozenset[str]]()
        for value in [*self._executor.model.graph.inputs, *(v for n in self._nodes for v in n.outputs)]:
            name = value.name or ""
            entry = self._plan.activation(name)
            if entry is None or entry.scale is None:
                continue
            if self._precision(value.producer()) not in INTEGER:
                chosen = [u.node.name or "" for u in value.uses() if self._precision(u.node) in INTEGER]
                if not chosen:
                    continue
                readers[name] = frozenset(chosen)
            values[name] = activation_grid(entry, self._executor)
        return values, readers

    def _planned_weight(self, node: ir.Node, index: int) -> TensorPlan | None:
        value = node.inputs[index] if index < len(node.inputs) else None
        entry = self._plan.tensors.get(value.name or "") if value is not None else None
        return entry if entry is not None and entry.role is Role.WEIGHT and entry.scale is not None else None

    def _stored_operands(self, node: ir.Node) -> Iterator[tuple[int, TensorPlan]]:
        """Yield the operands of a node that the lowered graph reads from integers."""
        precision = self._precision(node)
        places: tuple[int, ...] = (1,) if precision in (*INTEGER, Precision.DYNAMIC, Precision.BLOCKWISE) else ()
        if precision is Precision.WEIGHT_ONLY:
            places = weight_operands(node)
        for index in places:
            entry = self._planned_weight(node, index)
            if entry is not None:
                yield index, entry

    def _weights(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, Function]]]:
        stored = {n: dict(self._stored_operands(n)) for n in self._nodes}
        parameters, inputs = dict[str, torch.Tensor](), dict[str, dict[int, Function]]()
        for entries in stored.values():
            for entry in entries.values():
                if entry.name not in parameters:
                    parameters[entry.name] = self._weight(entry, decoded_weight)
        for node, entries in stored.items():
            for index, value in enumerate(node.inputs):
                name = value.name or "" if value is not None else ""
                if name in parameters and index not in entries:  # shared with a node that keeps it in float
                    inputs.setdefault(node.name or "", {})[index] = _Instead(self._executor.parameters[name])
        for entry in planned_tables(self._plan, self._executor):
            parameters[entry.name] = self._weight(entry, decoded_table)
        return parameters, inputs

    def _weight(self, entry: TensorPlan, decode: Callable[[TensorPlan, TorchExecutor], torch.Tensor]) -> torch.Tensor:
        known, weight = self._decoded.get(entry.name, (None, None))
        if weight is None or known is not entry:
            weight = decode(entry, self._executor)
            self._decoded[entry.name] = entry, weight
        return weight

    def _biases(self) -> dict[str, torch.Tensor]:
        found = {}
        for node in self._nodes:
            entry = self._plan.tensors.get(f"{node.name}:bias")
            if entry is None or entry.correction is None or not has_row_bias(node):
                continue
            if any(True for _ in self._stored_operands(node)):
                correction = entry.correction.astype(np.float32)
                found[node.name or ""] = torch.tensor(correction, device=self._executor.device)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Instead:
    tensor: torch.Tensor

    def __call__(self, _: torch.Tensor) -> torch.Tensor:
        return self.tensor


def activation_grid(entry: TensorPlan, executor: TorchExecutor) -> FakeQuantize:
    """Return the rounding of a planned activation.

    Raises:
        QCompileError: the entry has no scale.
    """
    if entry.scale is None:
        raise QCompileError(f"activation '{entry.name}' is planned without a scale")
    first, last = entry.spec.code_range if entry.spec is not None else (0, DYNAMIC_CODES)
    zero = 0 if entry.zero_point is None else int(entry.zero_point)
    scale = torch.tensor(float(entry.scale), dtype=torch.float32, device=executor.device)
    return FakeQuantize(scale, float(first - zero), float(last - zero))


def planned_tables(plan: CompressionPlan, executor: TorchExecutor) -> tuple[TensorPlan, ...]:
    """Return the tables of an executor's model that are planned in rows; all readers see what their codes stand for."""
    tables = (t for t in plan.tensors.values() if t.role is Role.TABLE and t.rows is not None)
    return tuple(t for t in tables if t.name in executor.parameters)


def decoded_table(entry: TensorPlan, executor: TorchExecutor) -> torch.Tensor:
    """Return a planned table decoded from its rows, in the type of the float table.

    Raises:
        QCompileError: the entry has no rows.
    """
    if entry.rows is None:
        raise QCompileError(f"table '{entry.name}' is planned without rows")
    table = executor.parameters[entry.name]
    return torch.tensor(entry.rows.decode(), dtype=table.dtype, device=table.device)


def decoded_weight(entry: TensorPlan, executor: TorchExecutor) -> torch.Tensor:
    """Return a planned weight decoded from its codes, in the type and shape of the float weight.

    Raises:
        QCompileError: the entry has no grid.
    """
    weight = executor.parameters[entry.name]
    codes = weight_codes(weight.detach().float().cpu().numpy(), entry)
    if entry.spec is None or entry.scale is None:
        raise QCompileError(f"weight '{entry.name}' is planned without a grid")
    scale = along(entry.grid(codes.shape)[0], entry.spec.axis, codes.ndim)
    return torch.tensor(codes.astype(np.float32) * scale, dtype=weight.dtype, device=weight.device)
