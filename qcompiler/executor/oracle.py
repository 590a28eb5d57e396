"""What a loss would be with other weights or grids: thousands of answers, each for the price of what follows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.errors import QCompileError
from qcompiler.executor.batching import Axes, Counted, row_count, rows_of
from qcompiler.executor.binding import Binding, binding_of
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.executor.loss import DistillationLoss
from qcompiler.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a ``LossOracle`` holds and computes at once.

    Attributes:
        batch_rows: samples in one run.
        stacked_rows / stacked_bytes: rows of candidates that share one run, and the values they start from. On a
            CPU small runs are bound by the cost of starting an operator, and large ones fall out of its caches.
        prefix_bytes: values that are kept so that what lies before a step is not computed again; batches beyond
            that are computed from the start every time.
    """

    batch_rows: int = 32
    stacked_rows: int = 64
    stacked_bytes: int = 4 * 2**20
    prefix_bytes: int = 2**30

    @classmethod
    def of(cls, device: torch.device) -> Limits:
        """Return the limits that suit a device."""
        return cls() if device.type == "cpu" else cls(batch_rows=128, stacked_rows=4096, stacked_bytes=2**30)


class LossOracle:
    """Evaluates the loss of a planned state, and of candidates that differ from it at one step.

    A search walks through the network in execution order. At every step it asks for the losses of candidates,
    chooses one and freezes it; the values that live before the step are computed once and kept, so that a candidate
    costs only the steps that follow. Gradients are not recorded.

    Args:
        state: with a plan for the nodes of ``executor.model``.
        executor: of the float model.
        samples: stacked feeds.
        loss: made from the same samples.
        axes: of the model, from ``batch_axes``; None runs rows one by one.
        limits: of memory and batches; None for those that suit the executor's device.

    Attributes:
        binding: the base that candidates are compared with: the simulation of ``state`` until something is frozen.
    """

    def __init__(
        self,
        state: State,
        executor: TorchExecutor,
        samples: Mapping[str, torch.Tensor],
        loss: DistillationLoss,
        axes: Axes | None,
        limits: Limits | None = None,
    ) -> None:
        self.executor, self.binding = executor, binding_of(state, executor)
        self._samples, self._loss, self._axes = samples, loss, axes
        self._limits = Limits.of(executor.device) if limits is None else limits
        step = self._limits.batch_rows if axes is not None else 1
        count = row_count(samples)
        self._batches = [slice(first, min(first + step, count)) for first in range(0, count, step)]
        self._rows, self._position = count, 0
        self._prefixes: list[Tensors | None] = [None] * len(self._batches)

    def loss(self, binding: Binding | None = None) -> float:
        """Return the loss of a binding, the base if None is given, computed from the start."""
        total = 0.0
        with torch.no_grad():
            for rows in self._batches:
                chosen = self.binding if binding is None else binding
                found = self.executor.run(rows_of(self._samples, rows), self._loss.outputs, binding=chosen)
                total += float(self._loss(found, rows).sum(dtype=torch.float64))
        return total / self._rows

    def first_step(self, binding: Binding) -> int:
        """Return the first step that a binding changes against the base, the number of steps if it changes none."""
        return min(self._changed(binding), default=len(self.executor.steps))

    def freeze(self, binding: Binding) -> None:
        """Make a binding the base; what is kept stays valid if it changes no step that was passed already."""
        if self.first_step(binding) < self._position:
            self._position, self._prefixes = 0, [None] * len(self._batches)
        self.binding = binding

    def candidates(self, step: int, bindings: Sequence[Binding]) -> NDArray[np.float64]:
        """Return the loss of every candidate, shape (candidates,).

        Args:
            step: the first step that any of them changes, or one before it. Asking for ever later steps is cheap,
                going back computes the prefix again.
            bindings: the candidates.

        Raises:
            QCompileError: a candidate changes an earlier step.
        """
        changed = [self._changed(b) for b in bindings]
        if any(c and min(c) < step for c in changed):
            name = self.executor.steps[min(min(c) for c in changed if c)].name
            raise QCompileError(f"a candidate for step {step} changes '{name}', which comes before it")
        behind = 1 + max((max(c) for c in changed if c), default=step - 1)
        total = np.zeros(len(bindings))
        with torch.no_grad():
            self._advance(step)
            for number, rows in enumerate(self._batches):
                total += self._batch(number, rows, bindings, behind)
        return total / self._rows

    def before(self, step: int) -> Iterator[Tensors]:
        """Yield, batch by batch, the values that live before a step, as the base makes them.

        They are as they were made: functions of the base are applied where values are read.
        """
        with torch.no_grad():
            self._advance(step)
            for number, rows in enumerate(self._batches):
                yield self._prefix(number, rows)

    # -- what candidates change ------------------------------------------------------------------------

    def _changed(self, binding: Binding) -> set[int]:
        """Return the numbers of the steps that see a difference; that of no step stands for the outputs."""
        base, found = self.binding, set[int]()
        for name in _differing(base.parameters, binding.parameters):
            found.update(self.executor.readers(name))
        for name in {*_differing(base.values, binding.values), *_differing(base.readers, binding.readers)}:
            found.update(self.executor.readers(name))
            if name in self._loss.outputs:
                found.add(len(self.executor.steps))
        nodes = {*_differing(base.biases, binding.biases), *_differing(base.inputs, binding.inputs)}
        if nodes:
            found.update(i for i, s in enumerate(self.executor.steps) if s.name in nodes)
        return found

    # -- the prefix ------------------------------------------------------------------------------------

    def _advance(self, step: int) -> None:
        """Compute and keep the values that live before a step, for as many batches as may be kept."""
        if step == self._position:
            return
        if step < self._position:
            self._position, self._prefixes = 0, [None] * len(self._batches)
        held = 0
        for number, rows in enumerate(self._batches):
            live = self._prefixes[number]
            if live is None and (self._position or held >= self._limits.prefix_bytes):
                continue
            start = rows_of(self._samples, rows) if live is None else live
            made = self._between(start, self._position, step)
            held += sum(v.numel() * v.element_size() for v in made.values())
            self._prefixes[number] = made if held <= self._limits.prefix_bytes else None
        self._position = step

    def _between(self, live: Tensors, start: int, stop: int, binding: Binding | None = None) -> Tensors:
        names = self.executor.live_before(stop, self._loss.outputs)
        chosen = self.binding if binding is None else binding
        return self.executor.run(live, names, binding=chosen, start=start, stop=stop)

    def _prefix(self, number: int, rows: slice) -> Tensors:
        kept = self._prefixes[number]
        return self._between(rows_of(self._samples, rows), 0, self._position) if kept is None else kept

    # -- the suffix ------------------------------------------------------------------------------------

    def _batch(self, number: int, rows: slice, bindings: Sequence[Binding], behind: int) -> NDArray[np.float64]:
        """Return the sum of the losses of some rows, for every candidate."""
        live = self._prefix(number, rows)
        count = rows.stop - rows.start
        if behind > len(self.executor.steps) or self._axes is None:
            return np.asarray([self._alone(live, rows, b) for b in bindings])
        found: list[float] = []
        while len(found) < len(bindings):
            first = self._between(live, self._position, behind, bindings[len(found)])
            group = bindings[len(found) : len(found) + self._group_size(first, count)]
            parts = [first, *(self._between(live, self._position, behind, b) for b in group[1:])]
            stacked = self._stacked(parts)
            if stacked is None:
                found += [self._alone(live, rows, b) for b in group]
                continue
            made = self.executor.run(stacked, self._loss.outputs, binding=self.binding, start=behind)
            found += self._loss(made, rows, len(group)).sum(1, dtype=torch.float64).tolist()
        return np.asarray(found)

    def _group_size(self, values: Tensors, rows: int) -> int:
        """Return how many candidates share a run that starts from such values."""
        size = sum(int(v.numel() * v.element_size()) for v in values.values())
        return max(min(self._limits.stacked_rows // rows, self._limits.stacked_bytes // max(size, 1)), 1)

    def _alone(self, live: Tensors, rows: slice, binding: Binding) -> float:
        """Return the sum of one candidate's losses, from a run of its own."""
        found = self.executor.run(live, self._loss.outputs, binding=binding, start=self._position)
        return float(self._loss(found, rows).sum(dtype=torch.float64))

    def _stacked(self, parts: Sequence[Tensors]) -> Tensors | None:
        """Return the candidates' values joined, None if one that all rows share differs between candidates."""
        stacked: Tensors = {}
        for name, first in parts[0].items():
            axis = self._axes.get(name) if self._axes is not None else None
            values = [p[name] for p in parts]
            if isinstance(axis, Counted):
                stacked[name] = axis.at(first, 1, len(values))
            elif isinstance(axis, int):
                stacked[name] = torch.cat(values, axis) if len(values) > 1 else first
            elif axis is None and all(v is first or torch.equal(v, first) for v in values):
                stacked[name] = first
            else:
                return None
        return stacked


def _differing(first: Mapping[str, object], second: Mapping[str, object]) -> set[str]:
    """Return the keys under which two mappings hold different objects."""
    if first is second:
        return set()
    return {key for key in {*first, *second} if first.get(key) is not second.get(key)}
