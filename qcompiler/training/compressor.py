"""What the driver trains: weights that are, or every so often become, what a plan can store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qcompiler.codec.xor_weights import XorRate
from qcompiler.executor.binding import Binding, planned_tables
from qcompiler.executor.executor import TorchExecutor
from qcompiler.model.weights import has_row_bias
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.state import State
from qcompiler.training.sparse import Sparse
from qcompiler.training.tables import TrainedRows
from qcompiler.training.weights import (
    FixedCodes,
    Parametrization,
    Start,
    StraightThrough,
    TrainedWeight,
    planned_weight,
    start_of,
)
from qcompiler.training.xor import XorBits

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


class LevelCompressor:
    """Weights on the levels of their plan, with trained scales, and the biases of their layers; tables if asked for.

    Weights are trained in units of their scale, so that a learning rate is a share of a grid step whatever the
    layer. They start as near to the float weights as the planned codes allow, so what a solver found is the start.

    Args:
        state: with a scale for every planned weight.
        executor: of the same float graph.
        parametrization: how weights choose among their levels.
        nodes: train only what these nodes and no others read; None for all.
        train_biases: also train the biases, which the plan stores as corrections.
        train_tables: also train what the codes of embedding rows stand for.

    Attributes:
        fixed_codes: train scales, biases and tables alone.
    """

    def __init__(
        self,
        state: State,
        executor: TorchExecutor,
        *,
        parametrization: Parametrization = StraightThrough,
        nodes: Collection[str] | None = None,
        train_biases: bool = True,
        train_tables: bool = False,
    ) -> None:
        self._executor, self._start, self.fixed_codes = executor, state.plan, False
        stored = [n for n in executor.model.graph if _precision(state, n.name or "") in STORED]
        inside = [n for n in stored if nodes is None or n.name in nodes]
        outside = {v.name for n in stored if n not in inside for v in n.inputs if v is not None}
        read = {v.name for n in inside for v in n.inputs if v is not None} - outside
        entries = [t for t in state.plan.tensors.values() if t.role is Role.WEIGHT and t.name in read]
        self._weights = {
            t.name: _trained(start_of(t, executor.parameters[t.name]), parametrization)
            for t in entries
            if t.scale is not None and t.name in executor.parameters
        }
        tables = planned_tables(state.plan, executor) if train_tables else ()
        self._tables = {t.name: TrainedRows(t, executor.device) for t in tables}
        self._biases: dict[str, tuple[Tensor, Tensor]] = {}
        for node in inside if train_biases else ():
            value = node.inputs[1] if len(node.inputs) > 1 else None
            name = value.name or "" if value is not None else ""
            if name in self._weights and has_row_bias(node) and node.op_type in ("Conv", "Gemm"):
                self._biases[node.name or ""] = self._bias(node.name or "", name)

    def _bias(self, node: str, weight: str) -> tuple[Tensor, Tensor]:
        """Return the trained shift of a bias, a leaf, and the unit it is in: the layer's typical grid step."""
        start = self._weights[weight].start
        scale = start.scale * start.gap
        entry = self._start.tensors.get(f"{node}:bias")
        correction = np.zeros(scale.numel()) if entry is None or entry.correction is None else entry.correction
        unit = scale.reshape(-1).mean()
        shift = torch.tensor(correction.astype(np.float32), device=unit.device) / unit
        return shift.requires_grad_(), unit

    def leaves(self) -> Sequence[Tensor]:
        """Return the leaves of weights, the shifts of biases, and the leaves of tables; see ``fixed_codes``."""
        kept = slice(-1, None) if self.fixed_codes else slice(None)
        weights = [leaf for w in self._weights.values() for leaf in w.leaves()[kept]]
        tables = [leaf for table in self._tables.values() for leaf in table.leaves()]
        return [*weights, *(shift for shift, _ in self._biases.values()), *tables]

    def compressed(self, base: Binding) -> Binding:
        """Return a binding whose weights are on their levels."""
        return self._bound(base, {n: w.codes() * w.scale() for n, w in self._weights.items()})

    def loose(self, base: Binding) -> Binding:
        """Return a binding whose weights are where training left them."""
        return self._bound(base, {n: w.loose() * w.scale() for n, w in self._weights.items()})

    def training(self, base: Binding) -> Binding:
        """Return a binding with the weights by which their parametrization is trained, on their levels or loose."""
        weights = self._weights.items()
        return self._bound(base, {n: (w.loose() if w.soft else w.codes()) * w.scale() for n, w in weights})

    def penalty(self, progress: float) -> Tensor:
        """Return how far loose weights are from their levels, as a mean over tensors; see ``TrainedWeight``."""
        found = [w.penalty(progress) for w in self._weights.values()]
        return torch.stack(found).mean() if found else torch.zeros(())

    def _bound(self, base: Binding, weights: Mapping[str, Tensor]) -> Binding:
        biases = {node: shift * unit for node, (shift, unit) in self._biases.items()}
        tables = {name: table.decoded() for name, table in self._tables.items()}
        return replace(base, parameters={**base.parameters, **weights, **tables}, biases={**base.biases, **biases})

    def project(self) -> None:
        """Move every weight to its level."""
        for weight in self._weights.values():
            weight.project()

    def planned(self, plan: CompressionPlan) -> CompressionPlan:
        """Return the plan with the trained codes, scales and bias corrections."""
        entries = [planned_weight(w) for w in self._weights.values()]
        entries += [table.planned() for table in self._tables.values()]
        for node, (shift, unit) in self._biases.items():
            before = plan.tensors.get(f"{node}:bias") or TensorPlan(name=f"{node}:bias", role=Role.BIAS)
            correction = (shift * unit).detach().cpu().numpy().astype(np.float64)
            entries.append(replace(before, correction=correction, reason="trained"))
        return plan.with_tensors(*entries)


def _trained(start: Start, parametrization: Parametrization) -> TrainedWeight:
    """Return a weight to train; zeros stay zeros, and code words words, whatever moves the codes of others."""
    if parametrization is FixedCodes:
        return parametrization(start)
    rate = XorRate.named(start.entry.encoding)
    if rate is not None:
        return XorBits(start, rate)
    return parametrization(start) if start.entry.sparsity is None else Sparse(start)


def _precision(state: State, node: str) -> Precision:
    found = state.plan.nodes.get(node)
    return Precision.FLOAT if found is None else found.precision
