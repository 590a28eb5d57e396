"""Fine-tuning of scales alone: codes stay what they are, so that a task is a small file of scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.executor.binding import binding_of
from qcompiler.executor.loss import DistillationLoss
from qcompiler.executor.setup import SearchSetup
from qcompiler.state import Progress, State
from qcompiler.training.compressor import LevelCompressor
from qcompiler.training.driver import Schedule, Task, fine_tune
from qcompiler.training.measure import held_out_entropy, held_out_loss
from qcompiler.training.weights import FixedCodes

Labels = NDArray[np.int64]


class ScaleTuning:
    """One fine-tuning: what is trained, on what, and how it is judged.

    Args:
        state: planned, with a scale for every weight.
        setup: its executor and samples.
        labels: int64 (rows,) of the samples that are learned and of those that judge; None learns what the float
            model answers.
    """

    def __init__(self, state: State, setup: SearchSetup, labels: tuple[Labels, Labels] | None) -> None:
        self._setup, self._state = setup, state
        self._learned = torch.from_numpy(labels[0]) if labels is not None else None
        self._judging = torch.from_numpy(labels[1]) if labels is not None else None
        self._base = binding_of(state, setup.executor)
        self._compressor = LevelCompressor(state, setup.executor, parametrization=FixedCodes, train_biases=False)
        loss = setup.loss
        if self._learned is not None:
            loss = DistillationLoss(setup.executor, setup.samples, setup.axes, labels=self._learned)
        self._outputs, self._classes = loss.outputs, loss.classes

    @property
    def unit(self) -> str:
        """Return what is judged by."""
        return "cross entropy in nats" if self._judging is not None else "distance from the float model"

    def loss(self) -> float:
        """Return the loss on the samples that are not learned, with the scales as they are now."""
        binding = self._compressor.compressed(self._base)
        if self._judging is None:
            return held_out_loss(self._setup, binding)
        return held_out_entropy(self._setup, binding, sorted(self._classes), self._judging)

    def train(self, schedule: Schedule, progress: Progress) -> int:
        """Train the scales and return the number of mini-batches."""
        task = Task(
            samples=self._setup.samples,
            outputs=self._outputs if self._learned is None else sorted(self._classes),
            classes=self._classes,
            base=self._base,
            labels=self._learned,
            distills=self._learned is None,
            schedule=schedule if self._setup.axes is not None else replace(schedule, batch_rows=1),
            progress=lambda step: progress("tuning scales", step, schedule.steps),
        )
        return fine_tune(self._setup.executor, self._compressor, 1, task).steps

    def scales(self) -> dict[str, NDArray[np.float32]]:
        """Return the scale of every trained weight."""
        before, plan = self._state.plan, self._compressor.planned(self._state.plan)
        changed = {name: entry for name, entry in plan.tensors.items() if entry is not before.tensors.get(name)}
        return {name: entry.scale for name, entry in changed.items() if entry.scale is not None}
