"""fine-tune: train weights, scales and biases on their grids, by distillation from the float model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qcompiler.errors import UsageError
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.training.driver import Schedule, Task

PROBE_STEPS = 3
"""Mini-batches whose time decides how many fit into the minutes that were asked for."""
MIN_STEPS = 20
DEFAULT_STEPS = 300


@dataclass(frozen=True, slots=True)
class FineTune:
    """Trains what the plan stores until the compressed model does what the float model does.

    Weights stay on the levels of their plan; their scales and the biases of their layers move with them. Samples
    need no labels. Kept only if the distance on acceptance samples, which the training never sees, has shrunk.

    Attributes:
        steps: mini-batches; 0 takes as many as fit into ``--fine-tune MINUTES``, and 300 without it.
        period: mini-batches between projections onto the grid; 1 trains through the rounding at every step.
        rate: learning rate, as a share of a grid step.
        features: weight of the error of inner values.
        rows: samples in a mini-batch.
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
    rate: float = 0.02
    features: float = 3.0
    rows: int = 32
    augment: bool = True

    def __post_init__(self) -> None:
        if self.period < 1 or self.rows < 1 or self.steps < 0 or not self.rate > 0 or self.features < 0:
            raise UsageError(
                f"{self.name}: period and rows must be at least 1, rate above 0, steps and features not negative"
            )

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with trained weights, or as it was where training does not help."""
        from qcompiler.executor.determinism import deterministic
        from qcompiler.executor.setup import prepare_search

        with deterministic(context.recipe.threads):
            setup = prepare_search(state, context)
            if isinstance(setup, str):
                skip = Skip("the model", setup)
                return PassResult(state, replace(self._report((), setup), skipped=(skip,)))
            return self._trained(state, context, setup)

    def _trained(self, state: State, context: Context, setup: SearchSetup) -> PassResult:
        from qcompiler.executor.binding import binding_of
        from qcompiler.training.compressor import LevelCompressor
        from qcompiler.training.driver import Task, fine_tune
        from qcompiler.training.measure import held_out_loss

        base = binding_of(state, setup.executor)
        before = held_out_loss(setup, base)
        task = Task(
            samples=setup.samples,
            outputs=setup.loss.outputs,
            classes=setup.loss.classes,
            base=base,
            schedule=self._schedule(PROBE_STEPS, context.recipe.seed, one_by_one=setup.axes is None),
            finished=context.budget.spent,
        )
        seconds = 60.0 * context.recipe.fine_tune_minutes
        steps = self.steps or (self._steps_in(state, setup, task, seconds) if seconds else DEFAULT_STEPS)
        task = replace(
            task,
            schedule=replace(task.schedule, steps=steps),
            progress=lambda step: context.progress("fine-tuning", step, steps),
        )
        compressor = LevelCompressor(state, setup.executor)
        record = fine_tune(setup.executor, compressor, self.period, task)
        found = replace(state, plan=compressor.planned(state.plan))
        after = held_out_loss(setup, binding_of(found, setup.executor))
        metrics = (
            Metric("distance on acceptance samples before", before, ""),
            Metric("distance on acceptance samples after", after, ""),
            Metric("mini-batches", record.steps, f"of {steps}"),
            Metric("inner values matched", record.features, "values"),
            *(Metric(f"training loss, part {i + 1}", v, "") for i, v in enumerate(record.losses)),
        )
        if not after < before:
            return PassResult(state, self._report(metrics, "training did not help on samples it has not seen"))
        options = {**self._options(), **record.options, "steps": steps}
        report = replace(self._report(metrics, ""), changed=True, options=options)
        return PassResult(replace(found, plan=found.plan.signed(self.name, state.plan)), report)

    def _steps_in(self, state: State, setup: SearchSetup, task: Task, seconds: float) -> int:
        """Return how many mini-batches fit into a time, from the time that a few take."""
        from qcompiler.training.compressor import LevelCompressor
        from qcompiler.training.driver import fine_tune

        record = fine_tune(setup.executor, LevelCompressor(state, setup.executor), self.period, task)
        each = record.seconds / max(record.steps, 1)
        return max(MIN_STEPS, int((seconds - record.seconds) / max(each, 1e-6)))

    def _schedule(self, steps: int, seed: int, *, one_by_one: bool) -> Schedule:
        from qcompiler.training.driver import Schedule

        return Schedule(
            steps=steps,
            batch_rows=1 if one_by_one else self.rows,
            learning_rate=self.rate,
            feature_weight=self.features,
            augment=self.augment,
            seed=seed,
        )

    def _options(self) -> dict[str, bool | int | float | str]:
        return {"steps": self.steps, "period": self.period, "rate": self.rate, "features": self.features}

    def _report(self, metrics: tuple[Metric, ...], note: str) -> PassReport:
        notes = (note,) if note else ()
        return PassReport(name=self.name, changed=False, options=self._options(), metrics=metrics, notes=notes)
