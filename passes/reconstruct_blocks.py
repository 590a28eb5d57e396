"""reconstruct-blocks: train the weights of one block after the other until it does what the float block does."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qcompiler.errors import UsageError
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.training.walk import BlockWalk, WalkOptions

PARAMETRIZATIONS = ("straight-through", "flexround", "soft-bit")
WAY = re.compile(r"([a-z-]+)(?:/([1-9]\d*))?")
THREADS = 2
"""At least; a number that does not depend on the machine, for sums are cut into as many parts."""
JOINT_SLOWER = 8
"""What divides the learning rate where the whole network is trained: its blocks are good already."""


@dataclass(frozen=True, slots=True)
class ReconstructBlocks:
    """Trains codes, scales and biases of one block after the other, in the order in which they run.

    A block reads what the compressed blocks before it make, and is trained towards what the float block makes of
    float inputs. Several ways of training start from the planned codes; the one with the least error on
    held-out calibration rows wins, against the block as it was. Behind the last block the whole network may be
    trained at once. What comes out is kept only if the distance on acceptance samples, which neither the training
    nor the contests see, has shrunk.

    Attributes:
        ways: of training, joined by "+": "straight-through", "flexround" or "soft-bit", each perhaps with what divides
            its learning rate, as in "straight-through/8".
        layers: with weights, that a block has at least.
        steps: mini-batches for each of them in each block; 0 takes as many as ``work`` allows.
        work: multiply-accumulates for all blocks together, where ``steps`` is 0. The same model takes the same steps
            on every machine, unless a limit of time cuts them short.
        rate: learning rate, as a share of a grid step.
        drop: probability with which an element of a block's input is taken from the float model.
        pressure: weight of the penalty on soft bits.
        rows: samples in a mini-batch.
        copies: variations of every sample, itself among them.
        joint: multiply-accumulates for the training of the whole network at the end, as a share of ``work``.
    """

    name: ClassVar[str] = "reconstruct-blocks"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.RANGES, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    ways: str = "straight-through+straight-through/8+flexround/2"
    layers: int = 1
    steps: int = 0
    work: float = 1e13
    rate: float = 0.04
    drop: float = 0.5
    pressure: float = 100.0
    rows: int = 32
    copies: int = 1
    joint: float = 0.3

    def __post_init__(self) -> None:
        for way in self.ways.split("+"):
            found = WAY.fullmatch(way)
            if found is None or found[1] not in PARAMETRIZATIONS:
                raise UsageError(f"{self.name}: ways {way!r} is none of {', '.join(PARAMETRIZATIONS)}, or such a /4")
        if min(self.rows, self.copies, self.layers) < 1 or min(self.steps, self.joint, self.pressure) < 0:
            raise UsageError(
                f"{self.name}: rows, copies and layers must be at least 1, steps, joint and pressure not negative"
            )
        if not (self.rate > 0 and self.work > 0 and 0 <= self.drop <= 1):
            raise UsageError(f"{self.name}: rate and work must be above 0, drop from 0 to 1")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with reconstructed blocks, or as it was where that does not help."""
        from qcompiler.executor.determinism import deterministic
        from qcompiler.executor.setup import prepare_search

        with deterministic(max(context.recipe.threads, THREADS)):
            setup = prepare_search(state, context)
            if not isinstance(setup, str) and setup.axes is None:
                setup = "its samples cannot share a run, which the reconstruction of blocks needs"
            if isinstance(setup, str):
                report = PassReport(name=self.name, changed=False, options=self._options(), notes=(setup,))
                return PassResult(state, replace(report, skipped=(Skip("the model", setup),)))
            return self._reconstructed(state, context, setup)

    def _reconstructed(self, state: State, context: Context, setup: SearchSetup) -> PassResult:
        from qcompiler.executor.binding import binding_of
        from qcompiler.training.measure import held_out_loss
        from qcompiler.training.walk import BlockWalk, joint_steps

        walk = BlockWalk(setup, context, self._walk_options(context.recipe.seed))
        found = walk.run(state)
        losses = [held_out_loss(setup, binding_of(s, setup.executor)) for s in (state, found)]
        steps = joint_steps(setup, self.joint * self.work, self.rows)
        if steps and not context.budget.spent():
            trained, steps = self._joint(found, context, setup, steps)
            losses.append(held_out_loss(setup, binding_of(trained, setup.executor)))
            walk.notes.append(f"whole network: {steps} mini-batches")
            if losses[2] < losses[1]:
                found = trained
        report = self._report(walk, losses)
        if not min(losses[1:]) < losses[0]:
            note = "reconstruction did not help on samples it has not seen"
            return PassResult(state, replace(report, notes=(*report.notes, note)))
        plan = found.plan.signed(self.name, state.plan)
        return PassResult(replace(found, plan=plan), replace(report, changed=True))

    def _joint(self, state: State, context: Context, setup: SearchSetup, steps: int) -> tuple[State, int]:
        """Return the state with the whole network trained at once, and how many mini-batches ran."""
        from qcompiler.executor.binding import binding_of
        from qcompiler.training.compressor import LevelCompressor
        from qcompiler.training.driver import Schedule, Task, fine_tune

        compressor = LevelCompressor(state, setup.executor)
        if not compressor.leaves():
            return state, 0
        task = Task(
            samples=setup.samples,
            outputs=setup.loss.outputs,
            classes=setup.loss.classes,
            base=binding_of(state, setup.executor),
            schedule=Schedule(
                steps=steps, batch_rows=self.rows, learning_rate=self.rate / JOINT_SLOWER, seed=context.recipe.seed
            ),
            finished=context.budget.spent,
            progress=lambda step: context.progress("training the whole network", step, steps),
        )
        record = fine_tune(setup.executor, compressor, 1, task)
        return replace(state, plan=compressor.planned(state.plan)), record.steps

    def _walk_options(self, seed: int) -> WalkOptions:
        from qcompiler.training.reconstruction import BlockSchedule
        from qcompiler.training.walk import WalkOptions

        schedule = BlockSchedule(
            steps=self.steps,
            batch_rows=self.rows,
            rate=self.rate,
            drop=self.drop,
            pressure=self.pressure,
            seed=seed,
        )
        return WalkOptions(
            schedule=schedule, ways=self.ways.split("+"), layers=self.layers, copies=self.copies, work=self.work
        )

    def _options(self) -> dict[str, bool | int | float | str]:
        names = ("ways", "layers", "steps", "work", "rate", "drop", "pressure", "rows", "copies", "joint")
        return {name: getattr(self, name) for name in names}

    def _report(self, walk: BlockWalk, losses: list[float]) -> PassReport:
        records = walk.records
        wins = {name: sum(r.winner == name for r in records) for name in ("as it was", *self.ways.split("+"))}
        names = ("before", "behind the blocks", "behind the whole network")
        columns = tuple(wins)
        rows = tuple(
            TableRow(name=r.block, values=tuple(r.errors.get(c) for c in columns), note=r.winner) for r in records
        )
        title = "Error of each block's output on held-out rows, by way of training"
        return PassReport(
            name=self.name,
            changed=False,
            options=self._options(),
            metrics=(
                *(Metric(f"distance on acceptance samples {n}", v, "") for n, v in zip(names, losses, strict=False)),
                Metric("blocks", len(records), "blocks"),
                Metric("mini-batches in blocks", sum(r.steps for r in records), "mini-batches"),
                *(Metric(f"won by {name}", count, "blocks") for name, count in wins.items() if count),
            ),
            notes=tuple(walk.notes),
            tables=(Table(title, "relative", columns, rows),) if rows else (),
        )
