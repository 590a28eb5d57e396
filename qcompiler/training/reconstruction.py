"""The reconstruction of one block: several parametrizations are trained, and rows that none has seen decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qcompiler.errors import QCompileError
from qcompiler.executor.binding import Binding
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.executor.loss import ROWS_AT_ONCE
from qcompiler.plan import CompressionPlan
from qcompiler.state import State
from qcompiler.training.blocks import Block, Streams
from qcompiler.training.compressor import LevelCompressor
from qcompiler.training.driver import BETAS, divergence, relative_error
from qcompiler.training.weights import FlexRound, Parametrization, SoftBit, StraightThrough

WAYS: Mapping[str, Parametrization] = {
    "straight-through": StraightThrough,
    "flexround": FlexRound,
    "soft-bit": SoftBit,
}
"""Name -> parametrization that may take part in the contest of a block."""

AS_IT_WAS = "as it was"


def parse_way(way: str) -> tuple[Parametrization, float]:
    """Return the parametrization that a text such as ``flexround/4`` names, and what divides its learning rate."""
    name, _, divisor = way.partition("/")
    return WAYS[name], float(divisor or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSchedule:
    """How a block is trained.

    Attributes:
        steps: mini-batches for each parametrization.
        batch_rows: rows in a mini-batch.
        rate: learning rate of Adam at the start, as a share of a grid step; it falls to 0 along half a cosine.
        drop: probability with which an element of the block's input is taken from the float model.
        pressure: weight of the penalty on soft bits, against the error at the start.
        seed: of rows and dropped elements.
    """

    steps: int = 200
    batch_rows: int = 32
    rate: float = 0.02
    drop: float = 0.5
    pressure: float = 100.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contest:
    """What became of a block.

    Attributes:
        errors: way of training, or ``AS_IT_WAS`` -> error on held-out rows.
        winner: whose error is the least.
        plan: the winner's.
        steps: mini-batches that ran, for all together.
        complete: nothing was cut short.
    """

    errors: Mapping[str, float]
    winner: str
    plan: CompressionPlan
    steps: int
    complete: bool


@dataclass(slots=True, kw_only=True, eq=False)
class BlockTrainer:
    """Trains the weights and biases of a block until it makes of compressed inputs what the float model makes.

    The error is the squared difference of the block's outputs over their power, plus the divergence of logits.

    Attributes:
        executor: of the float model.
        state: planned; its blocks before this one are done.
        base: the simulation of that state.
        block: to be trained.
        train / held: rows to train on, and rows that decide; both have entered the block.
        classes: values that hold logits.
        schedule: how long and how fast; its mini-batches are halved where they do not fit into memory.
        finished: asked before every mini-batch; True ends the training early.
        notes: what had to be given up, in words.

    Source: Li et al. 2021, BRECQ (arXiv:2102.05426), section 3.2, for the reconstruction of blocks; Wei et al. 2022,
    QDrop (arXiv:2203.05740), section 4.2, for inputs drawn from both models element by element. Differs: the error
    is not weighted by the Fisher information.
    """

    executor: TorchExecutor
    state: State
    base: Binding
    block: Block
    train: Streams
    held: Streams
    classes: frozenset[str] = frozenset()
    schedule: BlockSchedule = BlockSchedule()
    finished: Callable[[], bool] = lambda: False
    notes: list[str] = field(default_factory=list)

    def contest(self, ways: Sequence[str]) -> Contest:
        """Return the best of what some parametrizations make of the block, and of the block as it was.

        Args:
            ways: of training, such as "flexround", or "flexround/4" at a quarter of the learning rate.
        """
        errors = {AS_IT_WAS: self.error(self.base)}
        best, plan, ran, complete = AS_IT_WAS, self.state.plan, 0, True
        for way in ways:
            if self.finished():
                complete = False
                break
            compressor, steps = self.trained(*parse_way(way))
            if steps == 0:
                continue
            ran, complete = ran + steps, complete and steps == self.schedule.steps
            errors[way] = self.error(compressor.compressed(self.base))
            if errors[way] < errors[best]:
                best, plan = way, compressor.planned(self.state.plan)
        return Contest(errors=errors, winner=best, plan=plan, steps=ran, complete=complete)

    def error(self, binding: Binding) -> float:
        """Return the error over all held-out rows."""
        total = 0.0
        with torch.no_grad():
            for rows in torch.arange(self.held.rows).split(min(ROWS_AT_ONCE, self.schedule.batch_rows)):
                found = self._run(self.held.part(self.held.found, rows), binding)
                total += float(self._loss(found, self.held.part(self.held.targets, rows))) * len(rows)
        return total / self.held.rows

    def trained(self, parametrization: Parametrization, slower: float = 1.0) -> tuple[LevelCompressor, int]:
        """Return what is trained with a parametrization, and how many mini-batches ran.

        Args:
            parametrization: of the weights.
            slower: what divides the learning rate.

        Where memory does not suffice, training starts again with half of the rows in a mini-batch.
        """
        while True:
            compressor = LevelCompressor(
                self.state, self.executor, parametrization=parametrization, nodes=self.block.nodes
            )
            try:
                return compressor, self._train(compressor, self.schedule.rate / slower)
            except (MemoryError, RuntimeError, QCompileError) as error:
                if not out_of_memory(error) or self.schedule.batch_rows == 1:
                    raise
            self.schedule = replace(self.schedule, batch_rows=self.schedule.batch_rows // 2)
            rows = self.schedule.batch_rows
            self.notes.append(f"block '{self.block.name}': out of memory, so mini-batches are halved to {rows} rows")

    def _train(self, compressor: LevelCompressor, rate: float) -> int:
        plan, leaves = self.schedule, list(compressor.leaves())
        if not leaves:
            return 0
        optimizer = torch.optim.Adam(leaves, lr=rate, betas=BETAS)
        generator = torch.Generator().manual_seed(plan.seed)
        first = 0.0
        for step in range(plan.steps):
            if self.finished():
                return step
            progress = step / plan.steps
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
            rows = torch.randperm(self.train.rows, generator=generator)[: plan.batch_rows]
            found = self._run(self._inputs(rows, generator), compressor.training(self.base))
            loss = self._loss(found, self.train.part(self.train.targets, rows))
            first = first or float(loss.detach())
            loss = loss + plan.pressure * first * compressor.penalty(progress)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return plan.steps

    def _inputs(self, rows: Tensor, generator: torch.Generator) -> Tensors:
        """Return rows of the block's inputs as the compressed model makes them, some elements as the float model."""
        found, exact = (self.train.part(v, rows) for v in (self.train.found, self.train.exact))
        if self.schedule.drop == 0:
            return found
        mixed = {}
        for name, value in found.items():
            mixed[name] = value
            if value.is_floating_point() and value.dim():
                dropped = torch.rand(value.shape, generator=generator) < self.schedule.drop
                mixed[name] = torch.where(dropped.to(value.device), exact[name], value)
        return mixed

    def _run(self, feeds: Tensors, binding: Binding) -> Tensors:
        block = self.block
        return self.executor.run(feeds, block.outputs, binding=binding, start=block.start, stop=block.stop)

    def _loss(self, found: Tensors, wanted: Tensors) -> Tensor:
        names = self.block.outputs
        total = torch.stack([relative_error(found[n], wanted[n]) for n in names]).mean()
        logits = [divergence(found[n], wanted[n]) for n in names if n in self.classes]
        return total + torch.stack(logits).sum() if logits else total


def out_of_memory(error: BaseException | None) -> bool:
    """Return True if an error, or what caused it, says that memory could not be had."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False
