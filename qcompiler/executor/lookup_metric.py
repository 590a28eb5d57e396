"""What an error in a looked-up row does to the outputs, measured by gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.executor.binding import Binding
from qcompiler.executor.determinism import deterministic
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.executor.operator import to_torch

SAMPLES = 96
"""Samples whose gradients are measured, once as they are and once with other rows."""
SWAPPED = 0.5
"""Share of rows that are replaced by random ones, so that the measure also holds for text of another kind."""


@dataclass(frozen=True, slots=True, eq=False)
class LookupMetric:
    """Gradients of one table's readings.

    Attributes:
        metric: float64, shape (columns, columns): mean outer product of the gradients, trace = columns; half of it is
            the identity, because errors of few bits reach beyond where gradients hold.
        power: float64, shape (rows,): squared gradients at the readings of every row, summed.
        readings: float64, shape (rows,): how many readings were measured.
    """

    metric: NDArray[np.float64]
    power: NDArray[np.float64]
    readings: NDArray[np.float64]


def lookup_metrics(
    model: ir.Model, lookups: Mapping[str, Sequence[tuple[str, str]]], samples: Dataset, seed: int
) -> dict[str, LookupMetric]:
    """Return what errors in the rows of every table do to the floating-point outputs of a model.

    For random directions of the outputs, gradients with respect to the rows that were read are collected. A
    direction is the sum of one that is the same at all positions of a sample and one that is not, so that a sum
    over positions, as a sentence's vector is, counts as much as each of them.

    Args:
        model: a float model in normal form.
        lookups: table -> (value that holds the rows read, value that holds their indices) of every node that reads it.
        samples: what to run.
        seed: of the directions and of the replaced rows.

    Raises:
        ModelError: the model does not run in PyTorch.
    """
    executor = TorchExecutor(model)
    rng = np.random.default_rng(seed)
    sums = {name: _Sums(executor.parameters[name]) for name in lookups}
    with deterministic():
        for index in range(min(len(samples), SAMPLES)):
            feeds = {n: to_torch(np.asarray(a), executor.device) for n, a in samples[index].items()}
            for swapped in (0.0, SWAPPED):
                _measure(executor, feeds, lookups, sums, rng, swapped)
    return {name: found.metric() for name, found in sums.items()}


class _Sums:
    """What is added up for one table."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        rows, columns = table.shape
        self.gram = np.zeros((2, columns, columns))
        self.power, self.readings = np.zeros(rows), np.zeros(rows)

    def add(self, gradient: torch.Tensor, indices: NDArray[np.int64], *, swapped: bool) -> None:
        found = gradient.reshape(-1, self.table.shape[1]).double().numpy()
        self.gram[int(swapped)] += found.T @ found
        if not swapped:
            rows = np.where(indices < 0, indices + len(self.power), indices).reshape(-1)
            np.add.at(self.power, rows, np.square(found).sum(1))
            np.add.at(self.readings, rows, 1.0)

    def metric(self) -> LookupMetric:
        columns = self.gram.shape[1]
        total = np.eye(columns)
        for own in self.gram:
            trace = float(np.trace(own))
            total += 0.5 * own * columns / trace if trace > 0 else 0.5 * np.eye(columns)
        return LookupMetric(total / 2, self.power, self.readings)


def _measure(
    executor: TorchExecutor,
    feeds: Tensors,
    lookups: Mapping[str, Sequence[tuple[str, str]]],
    sums: Mapping[str, _Sums],
    rng: np.random.Generator,
    swapped: float,
) -> None:
    """Add one sample's gradients."""
    leaves: dict[str, torch.Tensor] = {}

    def leaf(name: str, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if name not in leaves:
            flat = rows.detach().reshape(-1, table.shape[1]).clone()
            chosen = np.flatnonzero(rng.random(len(flat)) < swapped)
            flat[chosen] = table[rng.integers(0, len(table), len(chosen))]
            leaves[name] = flat.reshape(rows.shape).requires_grad_()
        return leaves[name]

    places = [(table, rows, ids) for table, found in lookups.items() for rows, ids in found]
    values = {rows: _Leaf(leaf, rows, executor.parameters[table]) for table, rows, _ in places}
    wanted = (*executor.outputs, *(ids for _, _, ids in places))
    made = executor.run(feeds, wanted, binding=Binding(values=values))
    outputs = [made[name] for name in executor.outputs if made[name].is_floating_point() and made[name].requires_grad]
    if not outputs:
        return
    torch.autograd.backward(outputs, [_direction(output, rng) for output in outputs])
    for table, rows, ids in places:
        gradient = leaves[rows].grad if rows in leaves else None
        if gradient is not None:
            sums[table].add(gradient, made[ids].numpy().astype(np.int64), swapped=swapped > 0)


_Make = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


class _Leaf:
    """Lets gradients end at the rows that a node read."""

    def __init__(self, make: _Make, name: str, table: torch.Tensor) -> None:
        self._make, self._name, self._table = make, name, table

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self._make(self._name, self._table, rows)


def _direction(output: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return a random direction of an output, weighed so that outputs of different size count alike."""
    each = rng.standard_normal(tuple(output.shape))
    if output.dim() > 2:
        each = each + rng.standard_normal((output.shape[0], *(1,) * (output.dim() - 2), output.shape[-1]))
    size = float(output.detach().square().mean().sqrt()) or 1.0
    return torch.tensor(each / (size * max(output.numel(), 1) ** 0.5), dtype=output.dtype)
