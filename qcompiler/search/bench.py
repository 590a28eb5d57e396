"""Where candidates meet: losses on the rows that are searched on, and a second opinion on rows that are not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.budget import Budget
from qcompiler.executor.batching import row_count
from qcompiler.executor.binding import Binding, activation_grid, decoded_weight
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.executor.loss import DistillationLoss
from qcompiler.executor.oracle import Limits, LossOracle
from qcompiler.executor.setup import SearchSetup
from qcompiler.plan import Role, TensorPlan
from qcompiler.state import State

CONFIRM_SHARE = 4
"""Every fourth calibration row is kept back from the search, to confirm what it finds."""
MIN_GAIN = 1e-4
"""Smallest relative decrease of the loss that counts."""

ERROR_WEIGHT = 1.0
"""Of the squared error of class scores: with the few rows of a search, their divergence alone is mostly chance."""

Entries = tuple[TensorPlan, ...]
"""A candidate: the plan entries that it replaces."""


class Clock:
    """Tells when a search is over: its own time or the budget of the compilation is spent.

    Args:
        budget: of the compilation.
        seconds: for this search.
    """

    def __init__(self, budget: Budget, seconds: float) -> None:
        self._budget, self._deadline = budget, time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, min(self._deadline - time.monotonic(), self._budget.left_s()))

    def over(self) -> bool:
        """Return True if the search must end now."""
        return self._budget.spent() or self.left_s() <= 0.0


def split_rows(samples: Tensors, rows: int) -> tuple[Tensors, Tensors]:
    """Return (rows to search on, rows to confirm on) of stacked samples; scalar inputs go to both.

    Args:
        samples: stacked feeds.
        rows: at most so many rows to search on, spread over all of them. A single row serves for both.
    """
    count = row_count(samples)
    confirm = np.arange(count)[CONFIRM_SHARE - 1 :: CONFIRM_SHARE] if count >= CONFIRM_SHARE else np.arange(count)[-1:]
    rest = np.setdiff1d(np.arange(count), confirm)
    rest = rest if len(rest) else confirm
    chosen = rest[np.unique(np.linspace(0, len(rest) - 1, min(rows, len(rest))).astype(np.int64))]
    return _picked(samples, chosen), _picked(samples, confirm)


def _picked(samples: Tensors, rows: NDArray[np.int64]) -> Tensors:
    index = torch.from_numpy(rows)
    return {n: v.index_select(0, index.to(v.device)) if v.dim() else v for n, v in samples.items()}


def bound(base: Binding, entries: Entries, executor: TorchExecutor) -> Binding:
    """Return a binding with some plan entries replaced; an activation that nothing quantizes stays as it is."""
    parameters, values, biases = dict(base.parameters), dict(base.values), dict(base.biases)
    for entry in entries:
        if entry.role is Role.WEIGHT:
            parameters[entry.name] = decoded_weight(entry, executor)
        elif entry.role is Role.ACTIVATION:
            if entry.name in values:
                values[entry.name] = activation_grid(entry, executor)
        elif entry.correction is not None:
            correction = entry.correction.astype(np.float32)
            biases[entry.name.removesuffix(":bias")] = torch.tensor(correction, device=executor.device)
    return replace(base, parameters=parameters, values=values, biases=biases)


class Bench:
    """A planned state under search: measures candidates, and takes those that also hold on other rows.

    Args:
        setup: executor and samples.
        state: where the search starts.
        rows: how many calibration rows a candidate is measured on.

    Attributes:
        plan: the state's plan with everything that was taken.
        level / confirmed: loss of that plan on the rows to search on, and on the rows to confirm on.
        tried / taken / refused: candidates that were measured; those that were taken; those that looked better and
            were not on the rows to confirm on.
    """

    def __init__(self, setup: SearchSetup, state: State, rows: int) -> None:
        self.setup, self.executor, self.plan = setup, setup.executor, state.plan
        searched, confirming = split_rows(setup.samples, rows)
        self.samples, self.rows = searched, row_count(searched)
        self.search, self.confirm = (self._oracle(state, part) for part in (searched, confirming))
        self.level, self.confirmed = self.search.loss(), self.confirm.loss()
        self.tried = self.taken = self.refused = 0

    def _oracle(self, state: State, samples: Tensors) -> LossOracle:
        loss = DistillationLoss(self.executor, samples, self.setup.axes, error_weight=ERROR_WEIGHT)
        return LossOracle(state, self.executor, samples, loss, self.setup.axes, Limits())

    def losses(self, step: int, candidates: Sequence[Entries]) -> NDArray[np.float64]:
        """Return the loss of every candidate; infinity where it is no number.

        Args:
            step: the first step that any of them changes, or one before it.
            candidates: what each replaces.
        """
        self.tried += len(candidates)
        bindings = [bound(self.search.binding, c, self.executor) for c in candidates]
        return np.nan_to_num(self.search.candidates(step, bindings), nan=np.inf)

    def take(self, step: int, entries: Entries, level: float) -> bool:
        """Take a candidate if it is better by enough, and better on the rows to confirm on; return whether it was.

        Args:
            step: the first step that it changes, or one before it.
            entries: the candidate.
            level: its loss.
        """
        if not level < self.level * (1.0 - MIN_GAIN):
            return False
        found = float(self.confirm.candidates(step, [bound(self.confirm.binding, entries, self.executor)])[0])
        if not found < self.confirmed:
            self.refused += 1
            return False
        self.taken += 1
        self.adopt(entries, level, found)
        return True

    def adopt(self, entries: Entries, level: float, confirmed: float) -> None:
        """Make a candidate part of the plan, and of what later candidates are measured on."""
        self.plan = self.plan.with_tensors(*entries)
        for oracle in (self.search, self.confirm):
            oracle.freeze(bound(oracle.binding, entries, self.executor))
        self.level, self.confirmed = level, confirmed
