"""Training in rounds: what a round makes worse on other samples is taken back, and the next one goes more slowly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qcompiler.executor.setup import SearchSetup
from qcompiler.training.compressor import LevelCompressor
from qcompiler.training.driver import Task, TrainingRecord, fine_tune
from qcompiler.training.measure import held_out_distance

GAINED, LOST = 2.0, 4.0
"""What divides the learning rate behind a round that was kept, and behind one that was taken back."""


@dataclass(slots=True, eq=False)
class Rounds:
    """Rounds of training, each with a learning rate that falls to 0, from the best that is known.

    How fast weights may be trained depends on how good they are: from codes that a solver chose, a rate that suits
    rounding to nearest only leads away. So the rate is found on the way. The first of several rounds leaves all codes
    as they are: scales and biases are few, and fit themselves to samples much less than codes do.

    Attributes:
        setup: whose acceptance samples judge; no round trains on them.
        compressor: what is trained, and holds the best at the end.
        period: mini-batches between projections.
        records: of the rounds that ran.
        distances: on the acceptance samples, at the start and behind every round.
        rates: the learning rate that each round began with.
    """

    setup: SearchSetup
    compressor: LevelCompressor
    period: int = 1
    records: list[TrainingRecord] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def run(self, task: Task, count: int) -> None:
        """Train for all steps of a schedule, in a number of rounds.

        Args:
            task: its learning rate is that of the first round.
            count: of rounds, as long as each other.
        """
        steps = max(task.schedule.steps // count, 1)
        best, kept = self._distance(task), _copies(self.compressor.leaves())
        rate = task.schedule.learning_rate
        for number in range(count):
            if task.finished():
                break
            plan = replace(task.schedule, steps=steps, learning_rate=rate, seed=task.schedule.seed + number)
            part = replace(
                task,
                schedule=plan,
                progress=lambda step, done=number * steps: task.progress(done + step),  # type: ignore[misc]
                gone=lambda before=number: task.gone() * count - before,  # type: ignore[misc]
                finished=lambda before=number: task.finished() or task.gone() * count - before >= 1,  # type: ignore[misc]
            )
            self.rates.append(rate)
            self.compressor.fixed_codes = number == 0 and count > 1
            self.records.append(fine_tune(self.setup.executor, self.compressor, self.period, part))
            self.compressor.fixed_codes = False
            reached = self._distance(task)
            if reached < best:
                best, kept = reached, _copies(self.compressor.leaves())
            else:
                _restore(self.compressor.leaves(), kept)
            rate /= GAINED if reached <= best else LOST

    @property
    def steps(self) -> int:
        """Return how many mini-batches ran."""
        return sum(record.steps for record in self.records)

    @property
    def kept(self) -> int:
        """Return how many rounds were better than everything before them."""
        return sum(after < min(self.distances[: i + 1]) for i, after in enumerate(self.distances[1:]))

    def _distance(self, task: Task) -> float:
        distance = held_out_distance(self.setup, self.compressor.compressed(task.base))
        self.distances.append(distance)
        return distance


def _copies(leaves: Sequence[Tensor]) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in leaves]


def _restore(leaves: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for leaf, before in zip(leaves, kept, strict=True):
            leaf.copy_(before)
