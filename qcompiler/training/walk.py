"""The walk through a model's blocks, each reconstructed on what those before it make."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.errors import QCompileError
from qcompiler.executor.batching import Axes, row_count
from qcompiler.executor.binding import Decoded, binding_of
from qcompiler.executor.executor import Tensors
from qcompiler.executor.loss import ROWS_AT_ONCE
from qcompiler.executor.setup import SearchSetup
from qcompiler.plan import CompressionPlan, Role, TensorPlan
from qcompiler.state import Context, State
from qcompiler.training.augment import varied
from qcompiler.training.blocks import Block, Streams, blocks_of, work_of
from qcompiler.training.compressor import LevelCompressor
from qcompiler.training.reconstruction import WAYS, BlockSchedule, BlockTrainer

HELD_SHARE = 4
"""One in so many calibration rows decides instead of training."""
MIN_STEPS = 20
VISITS = 50
"""How often a row is trained on at most: a block is soon as good as its rows can tell."""
FEWEST_ROWS = 8
PASSES = 3.5
"""What a mini-batch costs, in forward runs: its own, the gradients, and the weights."""
JOINT_PASSES = 4.0
"""The same where the float model runs beside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecord:
    """The contest of one block.

    Attributes:
        block: its name.
        errors: way of training, or ``AS_IT_WAS`` -> error on held-out rows.
        winner: whose error is the least.
        steps: mini-batches that ran, for all together.
    """

    block: str
    errors: Mapping[str, float]
    winner: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkOptions:
    """How blocks are reconstructed.

    Attributes:
        schedule: of each block; its steps are 0 to take as many as ``work`` allows.
        ways: of training, that are tried on every block; see ``BlockTrainer.contest``.
        layers: with weights, that a block has at least.
        copies: variations of every row that is trained on, itself among them.
        work: multiply-accumulates for all blocks together.
    """

    schedule: BlockSchedule
    ways: Sequence[str] = tuple(WAYS)
    layers: int = 1
    copies: int = 1
    work: float = 1e13


@dataclass(slots=True, eq=False)
class BlockWalk:
    """Reconstructs the blocks of a planned model in the order in which they run.

    Attributes:
        setup: executor and calibration samples; the acceptance samples are not looked at.
        context: budget, checkpoint and progress.
        options: how.
        records: of the blocks that were done.
        notes: what had to be given up, in words.
        decoded: weights of the compressed model, of which a block changes a few.
    """

    setup: SearchSetup
    context: Context
    options: WalkOptions
    records: list[BlockRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decoded: Decoded = field(default_factory=dict)

    def run(self, state: State) -> State:
        """Return the state with the best of every block; a budget that is spent leaves the rest as it was.

        Raises:
            QCompileError: samples cannot share a run.
        """
        executor, wanted, axes = self.setup.executor, self.setup.loss.outputs, self._axes()
        blocks = blocks_of(executor, wanted, axes, self.options.layers)
        train, held = self._split(axes)
        streams = [Streams(executor, axes, rows, wanted, ROWS_AT_ONCE) for rows in (train, held)]
        works = work_of(executor, blocks, streams[1].part(held, torch.zeros(1, dtype=torch.long)))
        for number, block in enumerate(blocks):
            self.context.progress("reconstructing blocks", number, len(blocks))
            if self.context.budget.spent():
                self.notes.append(f"blocks from '{block.name}' on are as they were: {self.context.budget.cause()}")
                break
            state = self._block(state, number, block, streams, works)
        return state

    def _axes(self) -> Axes:
        if self.setup.axes is None:
            raise QCompileError("samples of this model cannot share a run, which the reconstruction of blocks needs")
        return self.setup.axes

    def _split(self, axes: Axes) -> tuple[Tensors, Tensors]:
        """Return the rows to train on, varied copies behind them, and the rows that decide."""
        samples, rows = self.setup.samples, torch.arange(row_count(self.setup.samples))
        chosen = rows % HELD_SHARE == HELD_SHARE - 1
        if not chosen.any():
            return dict(samples), dict(samples)
        train, held = (
            {n: v if axes.get(n) is None else v[part.to(v.device)] for n, v in samples.items()}
            for part in (rows[~chosen], rows[chosen])
        )
        generator = torch.Generator().manual_seed(self.options.schedule.seed)
        copies = [train, *(varied(dict(train), generator) for _ in range(self.options.copies - 1))]
        joined = {n: v if axes.get(n) is None else torch.cat([c[n] for c in copies]) for n, v in train.items()}
        return joined, held

    def _block(
        self, state: State, number: int, block: Block, streams: Sequence[Streams], works: Sequence[float]
    ) -> State:
        """Return the state with the best of one block, and move both streams behind it."""
        executor = self.setup.executor
        trainable = bool(LevelCompressor(state, executor, nodes=block.nodes).leaves())
        if trainable:
            self._make_room(block, streams)
        started = time.perf_counter()
        for stream in streams:
            stream.enter(block)
        forward = time.perf_counter() - started
        if trainable:
            found = self.context.checkpoint.load(block.name)
            if found is None:
                schedule = self._schedule(number, works, streams[0].rows, forward / sum(s.rows for s in streams))
                found = self._contest(state, block, streams, schedule)
            state = self._taken(state, block, found)
        base = binding_of(state, executor, self.decoded)
        for stream in streams:
            stream.leave(block, base)
        return state

    def _make_room(self, block: Block, streams: Sequence[Streams]) -> None:
        """Train on fewer rows where their values would take more memory than the budget allows."""
        train, held = streams
        while not self.context.budget.allows(train.bytes_for(block) + held.bytes_for(block)):
            if train.rows <= FEWEST_ROWS:
                break
            train.keep(train.rows // 2)
            self.notes.append(f"from block '{block.name}' on {train.rows} rows are trained on, to save memory")

    def _schedule(self, number: int, works: Sequence[float], rows: int, row_seconds: float) -> BlockSchedule:
        """Return the schedule of a block: as many steps as the work, and then the time that is left, allow."""
        schedule, ways = self.options.schedule, len(self.options.ways)
        steps = schedule.steps
        if steps == 0:
            each = PASSES * schedule.batch_rows * ways * sum(works)
            steps = max(MIN_STEPS, _affordable(self.options.work / each, rows, schedule.batch_rows))
        left = self.context.budget.left_s()
        if left < float("inf"):
            share = left * works[number] / sum(works[number:])
            steps = max(1, min(steps, int(share / (PASSES * schedule.batch_rows * ways * max(row_seconds, 1e-9)))))
        return replace(schedule, steps=steps, seed=schedule.seed + number)

    def _contest(
        self, state: State, block: Block, streams: Sequence[Streams], schedule: BlockSchedule
    ) -> dict[str, NDArray[Any]]:
        """Return what became of a block, as arrays; kept for another run only if it was not cut short."""
        trainer = BlockTrainer(
            executor=self.setup.executor,
            state=state,
            base=binding_of(state, self.setup.executor, self.decoded),
            block=block,
            train=streams[0],
            held=streams[1],
            classes=self.setup.loss.classes,
            schedule=schedule,
            finished=self.context.budget.spent,
            notes=self.notes,
        )
        contest = trainer.contest(self.options.ways)
        found: dict[str, NDArray[Any]] = {
            "winner": np.asarray(contest.winner),
            "steps": np.asarray(contest.steps),
            **{f"error:{name}": np.asarray(error) for name, error in contest.errors.items()},
            **_arrays(contest.plan, state.plan),
        }
        if contest.complete:
            self.context.checkpoint.save(block.name, found)
        return found

    def _taken(self, state: State, block: Block, found: Mapping[str, NDArray[Any]]) -> State:
        """Return the state with what a contest found, whether it was held now or in an earlier run."""
        errors = {key.removeprefix("error:"): float(v) for key, v in found.items() if key.startswith("error:")}
        winner = str(found["winner"])
        self.records.append(BlockRecord(block=block.name, errors=errors, winner=winner, steps=int(found["steps"])))
        return replace(state, plan=_restored(state.plan, found, winner))


def joint_steps(setup: SearchSetup, work: float, batch_rows: int) -> int:
    """Return how many mini-batches of the whole network some multiply-accumulates pay for."""
    if setup.axes is None:
        return 0
    rows = row_count(setup.samples)
    row = {n: v if setup.axes.get(n) is None else v[:1] for n, v in setup.samples.items()}
    works = work_of(setup.executor, blocks_of(setup.executor, setup.loss.outputs, setup.axes), row)
    return _affordable(work / (JOINT_PASSES * batch_rows * sum(works)), rows, batch_rows)


def _affordable(steps: float, rows: int, batch_rows: int) -> int:
    """Return so many steps, but no more than visit every row ``VISITS`` times."""
    return int(min(steps, max(1.0, VISITS * rows / min(rows, batch_rows))))


def _arrays(plan: CompressionPlan, before: CompressionPlan) -> dict[str, NDArray[Any]]:
    """Return codes, scales and corrections of the entries that differ, as arrays by kind and name."""
    found: dict[str, NDArray[Any]] = {}
    for name, entry in plan.tensors.items():
        if before.tensors.get(name) is entry:
            continue
        for kind in ("codes", "scale", "correction"):
            array = getattr(entry, kind)
            if array is not None:
                found[f"{kind}:{name}"] = array
    return found


def _restored(plan: CompressionPlan, found: Mapping[str, NDArray[Any]], winner: str) -> CompressionPlan:
    """Return the plan with the entries that ``_arrays`` took apart."""
    entries = []
    for key, array in found.items():
        kind, _, name = key.partition(":")
        before = plan.tensors.get(name)
        if kind == "codes" and before is not None:
            scale = np.asarray(found[f"scale:{name}"], np.float32)
            reach = float(np.abs(array).max()) * float(scale.max())
            reason = f"{before.reason}; reconstructed, {winner}"
            entries.append(replace(before, codes=array, scale=scale, clip=(-reach, reach), reason=reason))
        elif kind == "correction":
            bias = before or TensorPlan(name=name, role=Role.BIAS)
            entries.append(replace(bias, correction=array, reason=f"reconstructed, {winner}"))
    return plan.with_tensors(*entries)
