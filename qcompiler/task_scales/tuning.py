"""Fine-tuning of the scales of a compiled model for a task; its codes stay what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import input_specs, open_dataset
from qcompiler.data.labels import load_labels
from qcompiler.errors import DataError, UsageError
from qcompiler.model.load import load_model
from qcompiler.model.read import read_source, to_ir
from qcompiler.passes import WITH_DATA
from qcompiler.pipeline import Pipeline
from qcompiler.plan import CompressionPlan, Role
from qcompiler.protocols import PassKind
from qcompiler.recipe import Recipe
from qcompiler.registry import load_target, make_pass
from qcompiler.samples import Samples, class_outputs, prepare_samples
from qcompiler.state import Context, Fact, Progress, State, no_progress
from qcompiler.task_scales.file import TaskScales, codes_fingerprint

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup


Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """How scales are tuned.

    Attributes:
        data: samples of the task, as ``--data`` takes them.
        labels: a class for every sample, which alone are learned; None learns what the float model answers.
        steps: mini-batches.
        rows: samples in a mini-batch.
        rate: learning rate, as a share of a grid step at the largest code.
        seed: of the order of samples.
        threads: of the computation.
    """

    data: str
    labels: str | None = None
    steps: int = 300
    rows: int = 32
    rate: float = 0.02
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows < 1 or self.threads < 1 or not self.rate > 0:
            raise UsageError("steps, rows and threads are whole numbers from 1, and rate is above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedScales:
    """What a tuning found.

    Attributes:
        task: what ``save_scales`` writes.
        before / after: loss on samples of the task that were not learned.
        unit: what the loss is.
        steps: mini-batches that were run.
    """

    task: TaskScales
    before: float
    after: float
    unit: str
    steps: int


def tune_scales(result: Path, model: Path, options: TuneOptions, progress: Progress = no_progress) -> TunedScales:
    """Train the scales of a compiled model's weights on samples of a task.

    Args:
        result: a result folder.
        model: the float model that it was compiled from.
        options: the task, and how long.
        progress: told the number of the mini-batch.

    Raises:
        InputError: the result, the model or the samples do not fit each other.
        UsageError: the model cannot be trained in PyTorch, or its plan has no scales.
    """
    from qcompiler.executor.determinism import deterministic
    from qcompiler.executor.setup import prepare_search

    plan = CompressionPlan.load(result)
    codes = codes_fingerprint(to_ir(read_source(result / "model.onnx")))
    recipe = Recipe(data=options.data, labels=options.labels, seed=options.seed, threads=options.threads)
    loaded = load_model(model)
    samples = prepare_samples(loaded.model, recipe)
    context = Context(
        target=load_target(plan.target.split(", ")[0]),
        recipe=recipe,
        calibration=samples.calibration,
        acceptance=samples.acceptance,
        progress=progress,
    )
    with deterministic(options.threads):
        state = _planned(State(model=loaded.model, plan=CompressionPlan()), plan, context, samples)
        setup = prepare_search(state, context)
        if isinstance(setup, str):
            raise UsageError(f"{model}: {setup}")
        tuning = _Tuning(state, setup, _labels(options, loaded.model, samples))
        before = tuning.loss()
        steps = tuning.train(options, progress)
        task, after = TaskScales(tuning.scales(), codes), tuning.loss()
        return TunedScales(task=task, before=before, after=after, unit=tuning.unit, steps=steps)


def _planned(start: State, plan: CompressionPlan, context: Context, samples: Samples) -> State:
    """Return the state that a plan was made for: behind the rewrites."""
    passes = tuple(p for p in map(make_pass, WITH_DATA) if p.kind is PassKind.REWRITE)
    state, _ = Pipeline(passes, samples.probe).run(start, context)
    missing = [t.name for t in plan.tensors.values() if t.role is Role.WEIGHT and t.name not in _constants(state)]
    if missing:
        raise DataError(f"the model has no weight '{missing[0]}'; give the float model that was compiled")
    known = {Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES}
    return replace(state, plan=plan, facts=state.facts | known)


def _constants(state: State) -> set[str]:
    return {name for graph in state.model.graphs() for name in graph.initializers}


def _labels(options: TuneOptions, model: ir.Model, samples: Samples) -> tuple[Labels, Labels] | None:
    """Return the labels of the samples that are learned, and of those that judge; None without labels."""
    if options.labels is None or samples.facts is None:
        return None
    data = open_dataset(options.data, input_specs(model), Recipe().image)
    labels = load_labels(options.labels, data).reshape(-1)
    if not class_outputs(model, labels):
        raise DataError(f"{options.labels}: the model has no output of class scores that labels could be for")
    return labels[list(samples.facts.calibration)], labels[list(samples.facts.acceptance)]


class _Tuning:
    """One fine-tuning: what is trained, on what, and how it is judged."""

    def __init__(self, state: State, setup: SearchSetup, labels: tuple[Labels, Labels] | None) -> None:
        from torch import from_numpy

        from qcompiler.executor.binding import binding_of
        from qcompiler.executor.loss import DistillationLoss
        from qcompiler.training.compressor import LevelCompressor
        from qcompiler.training.weights import FixedCodes

        self._setup, self._state = setup, state
        self._learned = from_numpy(labels[0]) if labels is not None else None
        self._judging = from_numpy(labels[1]) if labels is not None else None
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
        from qcompiler.training.measure import held_out_entropy, held_out_loss

        binding = self._compressor.compressed(self._base)
        if self._judging is None:
            return held_out_loss(self._setup, binding)
        return held_out_entropy(self._setup, binding, sorted(self._classes), self._judging)

    def train(self, options: TuneOptions, progress: Progress) -> int:
        """Train the scales and return the number of mini-batches."""
        from qcompiler.training.driver import Schedule, Task, fine_tune

        task = Task(
            samples=self._setup.samples,
            outputs=self._outputs if self._learned is None else sorted(self._classes),
            classes=self._classes,
            base=self._base,
            labels=self._learned,
            distills=self._learned is None,
            schedule=Schedule(
                steps=options.steps,
                batch_rows=options.rows if self._setup.axes is not None else 1,
                learning_rate=options.rate,
                augment=False,
                seed=options.seed,
            ),
            progress=lambda step: progress("tuning scales", step, options.steps),
        )
        return fine_tune(self._setup.executor, self._compressor, 1, task).steps

    def scales(self) -> dict[str, NDArray[np.float32]]:
        """Return the scale of every trained weight."""
        before, plan = self._state.plan, self._compressor.planned(self._state.plan)
        changed = {name: entry for name, entry in plan.tensors.items() if entry is not before.tensors.get(name)}
        return {name: entry.scale for name, entry in changed.items() if entry.scale is not None}
