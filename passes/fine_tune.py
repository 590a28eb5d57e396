"""fine-tune: train weights, scales and biases on their grids, by distillation from the float model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qcompiler.errors import UsageError
from qcompiler.plan import CompressionPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.training.driver import Schedule, Task
    from qcompiler.training.rounds import Rounds

DEFAULT_STEPS = 300
ENDLESS = 1 << 40
"""Mini-batches where minutes decide: how many fit is not known before, for other programs come and go."""
THREADS = 2
"""At least; a number that does not depend on the machine, for sums are cut into as many parts."""


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What suits one kind of samples.

    Attributes:
        rows: samples in a mini-batch.
        rate: of the first round.
        rounds: parts of the training.
        features: weight of the error of inner values.
        half: multiply in half precision where the processor does.
        full_rate_steps: with fewer mini-batches the rate is lower in proportion.
    """

    rows: int
    rate: float
    rounds: int
    features: float
    half: bool
    full_rate_steps: int = 0


IMAGES = _Defaults(rows=16, rate=0.004, rounds=4, features=3.0, half=False)
"""Few images, and one answer to each: codes fit themselves to the samples soon."""
PRUNED = _Defaults(rows=16, rate=0.004, rounds=1, features=3.0, half=False, full_rate_steps=2000)
"""Images, and weights with zeros, which move far: one round, and slower where there is no time to win back what the
first steps lose."""
TOKENS = _Defaults(rows=64, rate=0.006, rounds=1, features=1.0, half=True)
"""Many sentences of few places, and an answer at every place: one long round goes furthest."""


@dataclass(frozen=True, slots=True)
class FineTune:
    """Trains what the plan stores until the compressed model does what the float model does.

    Weights stay on the levels of their plan; their scales and the biases of their layers move with them. Samples
    need no labels. What is kept is decided by the distance on acceptance samples, which no gradient comes from.

    Attributes:
        steps: mini-batches; 0 takes as many as fit into ``--fine-tune MINUTES``, and 300 without it.
        period: mini-batches between projections onto the grid; 1 trains through the rounding at every step.
        rate: learning rate of the first round, as a share of a grid step; 0 takes 0.004, and 0.006 of tokens. Where
            weights are pruned it is a share of an eighth of the largest level, and 0 takes less where fewer than 2,000
            mini-batches fit.
        rounds: parts of the training; each is kept if the distance on acceptance samples has shrunk, and the next is
            slower; 0 takes 4, and 1 of tokens and where weights are pruned.
        features: weight of the error of inner values; below 0 it is 3, and 1 of tokens.
        rows: samples in a mini-batch; 0 takes 16, and 64 of tokens.
        augment: vary the samples.
    """

    name: ClassVar[str] = "fine-tune"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.RANGES, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    improving: ClassVar[bool] = True
    steps: int = 0
    period: int = 1
    rate: float = 0.0
    rounds: int = 0
    features: float = -1.0
    rows: int = 0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.period < 1 or min(self.steps, self.rows, self.rounds, self.rate) < 0:
            raise UsageError(f"{self.name}: period must be at least 1, steps, rows, rounds and rate 0 or more")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with trained weights, or as it was where training does not help."""
        from qcompiler.executor.determinism import deterministic
        from qcompiler.executor.setup import prepare_search

        with deterministic(max(context.recipe.threads, THREADS)):
            setup = prepare_search(state, context)
            if isinstance(setup, str):
                skip = Skip("the model", setup)
                return PassResult(state, replace(self._report((), setup), skipped=(skip,)))
            return self._trained(state, context, setup)

    def _trained(self, state: State, context: Context, setup: SearchSetup) -> PassResult:
        from qcompiler.executor.binding import binding_of
        from qcompiler.training.compressor import LevelCompressor
        from qcompiler.training.measure import held_out_distance
        from qcompiler.training.rounds import Rounds

        task = self._task(state, context, setup)
        steps = task.schedule.steps
        rounds = Rounds(setup, LevelCompressor(state, setup.executor, train_tables=True), self.period)
        count = min(self.rounds or _defaults(setup, state.plan).rounds, steps)
        rounds.run(task, count)
        found = replace(state, plan=rounds.compressor.planned(state.plan))
        before, after = rounds.distances[0], held_out_distance(setup, binding_of(found, setup.executor))
        metrics = _metrics(rounds, "" if steps == ENDLESS else f"of {steps}", after)
        if not after < before:
            tried = ", ".join(f"{v:.4f} at rate {r:g}" for v, r in zip(rounds.distances[1:], rounds.rates, strict=True))
            note = f"training did not help on samples it has not seen: {before:.4f}, behind the rounds {tried}"
            return PassResult(state, self._report(metrics, note))
        how = rounds.records[0].options if rounds.records else {}
        options = {"steps": rounds.steps, "period": self.period, "rounds": count, **how}
        report = replace(self._report(metrics, ""), changed=True, options=options)
        return PassResult(replace(found, plan=found.plan.signed(self.name, state.plan)), report)

    def _task(self, state: State, context: Context, setup: SearchSetup) -> Task:
        """Return what is trained and for how long; with minutes to go by, the clock ends it."""
        from qcompiler.executor.binding import binding_of
        from qcompiler.training.driver import Task

        steps = self.steps or (ENDLESS if context.recipe.fine_tune_minutes else DEFAULT_STEPS)
        task = Task(
            samples=setup.samples,
            outputs=setup.loss.outputs,
            classes=setup.loss.classes,
            base=binding_of(state, setup.executor),
            schedule=self._schedule(_defaults(setup, state.plan), setup, context.recipe.seed, steps),
        )
        seconds, started = 60.0 * context.recipe.fine_tune_minutes, time.monotonic()

        def gone() -> float:
            return (time.monotonic() - started) / seconds if seconds else 0.0

        def progress(step: int) -> None:
            done, total = (step, steps) if steps != ENDLESS else (int(gone() * seconds), int(seconds))
            context.progress("fine-tuning", done, total)

        return replace(task, progress=progress, finished=lambda: context.budget.spent() or gone() > 1, gone=gone)

    def _schedule(self, usual: _Defaults, setup: SearchSetup, seed: int, steps: int) -> Schedule:
        """Return how the first round is trained."""
        from qcompiler.training.driver import Schedule

        return Schedule(
            steps=steps,
            batch_rows=1 if setup.axes is None else self.rows or usual.rows,
            learning_rate=self.rate or usual.rate,
            full_rate_steps=0 if self.rate else usual.full_rate_steps,
            feature_weight=usual.features if self.features < 0 else self.features,
            augment=self.augment,
            half=usual.half,
            seed=seed,
        )

    def _report(self, metrics: tuple[Metric, ...], note: str) -> PassReport:
        notes = (note,) if note else ()
        options = {"steps": self.steps, "period": self.period}
        return PassReport(name=self.name, changed=False, options=options, metrics=metrics, notes=notes)


def _defaults(setup: SearchSetup, plan: CompressionPlan) -> _Defaults:
    from qcompiler.executor.setup import reads_tokens

    if reads_tokens(setup.executor):
        return TOKENS
    return PRUNED if any(t.sparsity is not None for t in plan.tensors.values()) else IMAGES


def _metrics(rounds: Rounds, planned: str, after: float) -> tuple[Metric, ...]:
    return (
        Metric("distance on acceptance samples before", rounds.distances[0], ""),
        Metric("distance on acceptance samples after", after, ""),
        Metric("rounds kept", rounds.kept, f"of {len(rounds.records)}"),
        Metric("mini-batches", rounds.steps, planned),
        *(Metric(f"learning rate, round {i + 1}", v, "") for i, v in enumerate(rounds.rates)),
        *(Metric(f"distance behind round {i + 1}", v, "") for i, v in enumerate(rounds.distances[1:])),
        *(Metric(f"training loss, part {i + 1}", v, "") for i, v in enumerate(_losses(rounds))),
    )


def _losses(rounds: Rounds) -> tuple[float, ...]:
    """Return the mean losses of the halves of every round."""
    found = []
    for record in rounds.records:
        middle = len(record.losses) // 2
        found += [sum(part) / len(part) for part in (record.losses[:middle], record.losses[middle:]) if part]
    return tuple(found)
