"""What the driver trains: weights that are, or every so often become, what a plan can store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qcompiler.executor.binding import Binding
from qcompiler.executor.executor import TorchExecutor
from qcompiler.lowering import weight_codes
from qcompiler.model.weights import has_row_bias
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.quant.grid import SMALLEST_SCALE
from qcompiler.state import State

EIGHT_BITS = np.arange(-127, 128, dtype=np.int8)
EDGE = 0.05
"""Part of a cell next to its border where no weight starts: it would fall into the next cell at the first step."""

STORED = (Precision.INTEGER, Precision.DYNAMIC, Precision.WEIGHT_ONLY)


class Compressor(Protocol):
    """A projection of trainable tensors onto what a plan can store.

    The driver asks for one of the two bindings at every mini-batch, moves the leaves by their gradients, and
    projects; it does not know what the compression is.
    """

    def leaves(self) -> Sequence[Tensor]:
        """Return what is trained, in units in which one learning rate suits all."""
        ...

    def compressed(self, base: Binding) -> Binding:
        """Return a binding with compressed weights, through which gradients pass straight."""
        ...

    def loose(self, base: Binding) -> Binding:
        """Return a binding with the weights as they are between two projections."""
        ...

    def project(self) -> None:
        """Replace the weights by their compressed values."""
        ...

    def planned(self, plan: CompressionPlan) -> CompressionPlan:
        """Return a plan that stores the compressed weights."""
        ...


class _NearestLevel(torch.autograd.Function):  # type: ignore[misc]
    """The nearest level of a table; the gradient is 1 inside the table's range and 0 outside."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, levels: Tensor) -> Tensor:
        ctx.save_for_backward((x >= levels[0] - 0.5) & (x <= levels[-1] + 0.5))
        return levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None


@dataclass(slots=True, eq=False)
class _Weight:
    """A trained weight in units of its scale.

    Attributes:
        position: the weight over its scale; a leaf.
        growth: logarithm of what the scale is multiplied by, one per channel; a leaf.
        scale: the planned scale, broadcast against the weight.
        levels: what the codes may be.
    """

    entry: TensorPlan
    position: Tensor
    growth: Tensor
    scale: Tensor
    levels: Tensor

    def current_scale(self) -> Tensor:
        return (self.scale * self.growth.exp()).clamp(min=SMALLEST_SCALE)

    def codes(self) -> Tensor:
        found: Tensor = _NearestLevel.apply(self.position, self.levels)
        return found


class LevelCompressor:
    """Weights on the levels of their plan, with trained scales, and the biases of their layers.

    Weights are trained in units of their scale, so that a learning rate is a share of a grid step whatever the
    layer. They start as near to the float weights as the planned codes allow, so what a solver found is the start.

    Args:
        state: with a scale for every planned weight.
        executor: of the same float graph.
        train_biases: also train the biases, which the plan stores as corrections.

    Source: Esser et al. 2020, Learned Step Size Quantization (arXiv:1902.08153), equations 1 to 3, for the gradient
    of the scale, which follows from passing the rounding straight. Differs: levels may be any integers, and the
    scale is trained by its logarithm, without their gradient scale.
    """

    def __init__(self, state: State, executor: TorchExecutor, *, train_biases: bool = True) -> None:
        self._executor, self._start = executor, state.plan
        stored = [n for n in executor.model.graph if _precision(state, n.name or "") in STORED]
        read = {v.name for n in stored for v in n.inputs if v is not None}
        entries = [t for t in state.plan.tensors.values() if t.role is Role.WEIGHT and t.name in read]
        self._weights = [self._weight(t) for t in entries if t.scale is not None and t.name in executor.parameters]
        names = {w.entry.name for w in self._weights}
        self._biases: dict[str, tuple[Tensor, Tensor]] = {}
        for node in stored if train_biases else ():
            value = node.inputs[1] if len(node.inputs) > 1 else None
            if value is not None and value.name in names and has_row_bias(node) and node.op_type in ("Conv", "Gemm"):
                self._biases[node.name or ""] = self._bias(node.name or "", value.name or "", len(node.inputs) > 2)

    def _weight(self, entry: TensorPlan) -> _Weight:
        weight = self._executor.parameters[entry.name].detach().float()
        device = weight.device
        levels = EIGHT_BITS if entry.levels is None else entry.levels
        axis = entry.spec.axis if entry.spec is not None else None
        shape = [1] * weight.dim()
        if axis is not None:
            shape[axis] = -1
        scale = torch.tensor(np.asarray(entry.scale, np.float32), device=device).reshape(shape)
        codes = torch.tensor(weight_codes(weight.cpu().numpy(), entry).astype(np.float32), device=device)
        table = torch.tensor(levels.astype(np.float32), device=device)
        position = _within_cell(weight / scale, codes, table)
        growth = torch.zeros_like(scale)
        return _Weight(entry, position.requires_grad_(), growth.requires_grad_(), scale, table)

    def _bias(self, node: str, weight: str, present: bool) -> tuple[Tensor, Tensor]:
        """Return the trained shift of a bias, a leaf, and the unit it is in: the layer's typical grid step."""
        found = next(w for w in self._weights if w.entry.name == weight)
        entry = self._start.tensors.get(f"{node}:bias")
        channels = found.scale.numel()
        correction = np.zeros(channels) if entry is None or entry.correction is None else entry.correction
        unit = found.scale.reshape(-1).mean().detach()
        shift = torch.tensor(correction.astype(np.float32), device=unit.device) / unit
        return shift.requires_grad_(), unit

    def leaves(self) -> Sequence[Tensor]:
        """Return positions, growths and shifts."""
        weights = [leaf for w in self._weights for leaf in (w.position, w.growth)]
        return [*weights, *(shift for shift, _ in self._biases.values())]

    def compressed(self, base: Binding) -> Binding:
        """Return a binding whose weights are on their levels."""
        return self._bound(base, {w.entry.name: w.codes() * w.current_scale() for w in self._weights})

    def loose(self, base: Binding) -> Binding:
        """Return a binding whose weights are where training left them."""
        return self._bound(base, {w.entry.name: w.position * w.current_scale() for w in self._weights})

    def _bound(self, base: Binding, weights: Mapping[str, Tensor]) -> Binding:
        biases = {node: shift * unit for node, (shift, unit) in self._biases.items()}
        return replace(base, parameters={**base.parameters, **weights}, biases={**base.biases, **biases})

    def project(self) -> None:
        """Move every weight to its nearest level."""
        with torch.no_grad():
            for weight in self._weights:
                weight.position.copy_(weight.codes())

    def planned(self, plan: CompressionPlan) -> CompressionPlan:
        """Return the plan with the trained codes, scales and bias corrections."""
        entries = [_planned_weight(w) for w in self._weights]
        for node, (shift, unit) in self._biases.items():
            before = plan.tensors.get(f"{node}:bias") or TensorPlan(name=f"{node}:bias", role=Role.BIAS)
            correction = (shift * unit).detach().cpu().numpy().astype(np.float64)
            entries.append(replace(before, correction=correction, reason="trained"))
        return plan.with_tensors(*entries)


def _planned_weight(weight: _Weight) -> TensorPlan:
    entry = weight.entry
    scale = weight.current_scale().detach().cpu().numpy().astype(np.float32)
    shaped = scale.reshape(() if entry.scale is None else entry.scale.shape)
    codes = weight.codes().detach().cpu().numpy().astype(np.int8)
    top = float(np.abs(weight.levels.cpu().numpy()).max()) * float(shaped.max())
    return replace(entry, scale=shaped, codes=codes, clip=(-top, top), reason=f"{entry.reason}; trained")


def _within_cell(wanted: Tensor, codes: Tensor, levels: Tensor) -> Tensor:
    """Return the points nearest to the wanted ones that round to given codes."""
    middles = (levels[1:] + levels[:-1]) / 2
    ends = torch.tensor([torch.inf], device=levels.device)
    index = torch.bucketize(codes, middles)
    low, high = torch.cat([-ends, middles])[index], torch.cat([middles, ends])[index]
    room = torch.where((high - low).isfinite(), (high - low) * EDGE, torch.full_like(low, EDGE))
    inside = torch.minimum(torch.maximum(wanted, low + room), high - room)
    return inside.clamp(float(levels[0]) - 0.5, float(levels[-1]) + 0.5)


def _precision(state: State, node: str) -> Precision:
    found = state.plan.nodes.get(node)
    return Precision.FLOAT if found is None else found.precision
