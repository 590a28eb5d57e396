"""Fine-tuning of the scales of a compiled model for a task; its codes stay what they are."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

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
    from qcompiler.training.driver import Schedule
    from qcompiler.training.scales import ScaleTuning

    plan = CompressionPlan.load(result)
    codes = codes_fingerprint(to_ir(read_source(result / "model.onnx")))
    recipe = _recipe(options)
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
        tuning = ScaleTuning(state, setup, _labels(options, loaded.model, samples))
        before = tuning.loss()
        schedule = Schedule(
            steps=options.steps,
            batch_rows=options.rows,
            learning_rate=options.rate,
            augment=False,
            seed=options.seed,
        )
        steps = tuning.train(schedule, progress)
        task, after = TaskScales(tuning.scales(), codes), tuning.loss()
        return TunedScales(task=task, before=before, after=after, unit=tuning.unit, steps=steps)


def _recipe(options: TuneOptions) -> Recipe:
    """Return what the samples are read with: no gate follows, so that all of them are learned but those that judge."""
    return Recipe(
        data=options.data,
        labels=options.labels,
        seed=options.seed,
        threads=options.threads,
        calibration_samples=sys.maxsize,
        verify_samples=1,
    )


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
