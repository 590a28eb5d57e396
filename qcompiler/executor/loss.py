"""How far a simulated model is from the float one, row by row: what searches minimize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler.errors import DataError, QCompileError
from qcompiler.executor.batching import Axes, row_count, rows_of
from qcompiler.executor.executor import TorchExecutor
from qcompiler.model.measured import FLOATS, measured_values
from qcompiler.samples import class_outputs, distributions

ROWS_AT_ONCE = 32
SMALLEST_POWER = 1e-30
"""An output that is 0 throughout has no power to divide by."""
RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"})


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """What the float model returns: matrices (rows, features), where they are finite if not everywhere, and powers."""

    values: Mapping[str, Tensor]
    finite: Mapping[str, Tensor]
    power: Mapping[str, float]


class DistillationLoss:
    """Distance from the float model's outputs on some samples, as a mean over rows and outputs.

    An output that holds class scores counts with the divergence KL(float || found) of its two distributions, in
    nats; one that holds them at several places of a row, such as the tokens of a sentence, with the mean over places.
    Any other output counts with its squared error, divided by the mean power of a row. All are compared before a
    Softmax at the end. With labels, the cross entropy of the class scores is added with a weight. What the float model
    returns is computed when it is first asked for: a training that computes it anew needs no room for it.

    Args:
        executor: of the float model.
        samples: stacked feeds.
        axes: of the model, from ``batch_axes``; None runs rows one by one.
        labels: int64 (rows,), or None.
        label_weight: of the cross entropy; 0 only distills.
        error_weight: of the squared error of class scores, divided by their mean power, beside their divergence. A
            few rows near a border between classes make up most of a divergence; the error counts all rows alike.

    Attributes:
        outputs: names of the values that are compared.
        classes: those of them that hold logits.

    Raises:
        QCompileError: the model has no float output that depends on the samples.
        DataError: the labels are not one per row.

    Source: Hinton, Vinyals, Dean 2015, Distilling the Knowledge in a Neural Network (arXiv:1503.02531), section 2,
    at temperature 1.
    """

    def __init__(
        self,
        executor: TorchExecutor,
        samples: Mapping[str, Tensor],
        axes: Axes | None,
        *,
        labels: Tensor | None = None,
        label_weight: float = 0.0,
        error_weight: float = 0.0,
    ) -> None:
        self._axes, self._labels, self._label_weight, self._error_weight = axes, labels, label_weight, error_weight
        self.rows = row_count(samples)
        if labels is not None and tuple(labels.shape) != (self.rows,):
            raise DataError(f"{labels.numel()} labels for {self.rows} rows; give one label per row")
        self.outputs, self.classes = _compared(executor.model, axes, labels)
        if not self.outputs:
            raise QCompileError("no float output depends on the input, so that there is no loss to search by")
        self._executor, self._samples = executor, samples

    @cached_property
    def _wanted(self) -> _Wanted:
        """Return what the float model returns."""
        found = self._float_outputs(self._executor, self._samples)
        finite = {n: torch.isfinite(v) for n, v in found.items() if not bool(torch.isfinite(v).all())}
        values = {n: v.nan_to_num(0.0, 0.0, 0.0) if n in finite else v for n, v in found.items()}
        power = {n: max(float(v.square().sum(1).mean()), SMALLEST_POWER) for n, v in values.items()}
        return _Wanted(values, finite, power)

    def _float_outputs(self, executor: TorchExecutor, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in self.outputs}
        step = ROWS_AT_ONCE if self._axes is not None else 1
        with torch.no_grad():
            for first in range(0, self.rows, step):
                rows = slice(first, min(first + step, self.rows))
                found = executor.run(rows_of(samples, rows), self.outputs)
                for name, kept in parts.items():
                    kept.append(self._matrix(found[name], name, rows.stop - first))
        return {name: torch.cat(kept) for name, kept in parts.items()}

    def _matrix(self, value: Tensor, name: str, rows: int) -> Tensor:
        """Return an output as a matrix (rows, features)."""
        axis = None if self._axes is None else self._axes[name]
        return value.reshape(rows, -1) if not isinstance(axis, int) else value.movedim(axis, 0).reshape(rows, -1)

    def __call__(self, found: Mapping[str, Tensor], rows: slice, copies: int = 1) -> Tensor:
        """Return the loss of every row, shape (copies, rows), with gradients.

        Args:
            found: values by name, at least ``outputs``; copies of the rows one after another.
            rows: which rows of the samples they are, with start and stop.
            copies: how many candidates are stacked in ``found``.
        """
        count = rows.stop - rows.start
        total = torch.zeros((), device=next(iter(found.values())).device)
        for name in self.outputs:
            expected = self._wanted.values[name][rows]
            here = self._matrix(found[name], name, copies * count).reshape(copies, count, -1)
            if name in self.classes:
                total = total + self._divergence(here, expected, rows, int(found[name].shape[-1]))
            weight = self._error_weight if name in self.classes else 1.0
            if weight:
                total = total + weight * self._error(here, expected, name, rows) / self._wanted.power[name]
        return total / len(self.outputs)

    def _divergence(self, found: Tensor, expected: Tensor, rows: slice, classes: int) -> Tensor:
        """Return the divergence of every row, (copies, rows), as a mean over its places."""
        wanted, log = (torch.log_softmax(v.unflatten(-1, (-1, classes)), -1) for v in (expected, found))
        loss = (wanted.exp() * (wanted - log)).sum(-1).mean(-1)
        log = log[..., 0, :]  # labels are of outputs with one place
        if self._labels is None or self._label_weight == 0.0:
            return loss
        truth = self._labels[rows].to(found.device).expand(found.shape[:2]).unsqueeze(-1)
        return loss - self._label_weight * log.gather(-1, truth).squeeze(-1)

    def _error(self, found: Tensor, expected: Tensor, name: str, rows: slice) -> Tensor:
        """Return the squared error of rows; where the float model has an infinity, such as a mask, nothing counts."""
        if name in self._wanted.finite:
            found = torch.where(self._wanted.finite[name][rows], found, expected)
        return (found - expected).square().sum(-1)


def _compared(model: ir.Model, axes: Axes | None, labels: Tensor | None) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the values to compare, and those of them that hold logits of classes."""
    made = {o.name or "": n for n in model.graph for o in n.outputs}
    scores = distributions(model) if labels is None else class_outputs(model, labels.cpu().numpy())
    floats = [v.name or "" for v in model.graph.outputs if isinstance(v.type, ir.TensorType) and v.dtype in FLOATS]
    logits: dict[str, bool] = {}
    for output, name in zip(floats, measured_values(model), strict=True):
        end = _before_softmax(name, made)
        logits[end] = logits.get(end, False) or (output in scores and not _holds_probabilities(end, made))
    varying = tuple(n for n in logits if axes is None or isinstance(axes.get(n), int))
    return varying, frozenset(n for n in varying if logits[n])


def _before_softmax(name: str, made: Mapping[str, ir.Node]) -> str:
    """Return the input of the Softmax that makes a value, also behind an Identity; else the value itself."""
    node = made.get(name)
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = made.get(node.inputs[0].name or "")
    squashed = node.inputs[0] if node is not None and node.op_type in ("Softmax", "LogSoftmax") else None
    return name if squashed is None else squashed.name or ""


def _holds_probabilities(name: str, made: Mapping[str, ir.Node]) -> bool:
    """Return True if a value is only a reshaped output of a Softmax."""
    node = made.get(name)
    while node is not None and node.op_type in RESHAPING and node.inputs[0] is not None:
        node = made.get(node.inputs[0].name or "")
    return node is not None and node.op_type == "Softmax"
