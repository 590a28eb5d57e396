"""The fine-tuning driver: distillation from the float model, with any compressor in the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qcompiler.errors import QCompileError
from qcompiler.executor.binding import EMPTY, Binding
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.model.blocks import block_outputs
from qcompiler.training.augment import varied
from qcompiler.training.compressor import Compressor

SMALLEST_POWER = 1e-30
BETAS = (0.9, 0.999)
TRACE = 20
"""Points of the loss that a record keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: mini-batches.
        batch_rows: samples in a mini-batch.
        learning_rate: of Adam at the start, in units of the compressor; it falls to 0 along half a cosine.
        full_rate_steps: with fewer mini-batches than this, or fewer that fit into the time, the learning rate is lower
            in proportion.
        feature_weight: of the error of inner values against that of the outputs.
        augment: vary the samples; see ``varied``.
        half: multiply in bfloat16 where the processor does that at twice the speed; weights, their gradients and the
            loss stay in float32.
        seed: of the order of samples and their variations.
    """

    steps: int = 400
    batch_rows: int = 32
    learning_rate: float = 0.02
    full_rate_steps: int = 0
    feature_weight: float = 3.0
    augment: bool = True
    half: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is learned.

    Attributes:
        samples: stacked feeds, without labels.
        outputs: values whose distance from the float model is minimized; a subset of the executor's values.
        classes: those of them that hold logits, compared as distributions.
        base: binding in which the weights are trained, such as one with quantized activations.
        labels: int64, a class for each row of the scores of every output in ``classes``: (rows,), or (rows, places)
            for scores of shape (rows, places, classes), where -100 has none. Their cross entropy is added; None only
            distills.
        distills: the distance from the float model counts; False learns from the labels alone.
        schedule: how long and how fast.
        finished: asked before every mini-batch; True ends the training early.
        gone: the share of the time that is over; where it is ahead of the mini-batches, the learning rate follows it.
        progress: told the number of the step.
    """

    samples: Mapping[str, Tensor]
    outputs: Sequence[str]
    classes: frozenset[str] = frozenset()
    base: Binding = EMPTY
    labels: Tensor | None = None
    distills: bool = True
    schedule: Schedule = Schedule()
    finished: Callable[[], bool] = lambda: False
    gone: Callable[[], float] = lambda: 0.0
    progress: Callable[[int], None] = lambda step: None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What a training did.

    Attributes:
        steps: mini-batches that were run, at most as many as planned.
        period: mini-batches between two projections; 1 is straight through at every step.
        losses: mean loss of equal stretches of the training.
        features: how many inner values were matched.
        options: everything else that the result depends on, the optimizer's state at projections included.
        seconds: how long it took.
    """

    steps: int
    period: int
    losses: tuple[float, ...]
    features: int
    options: Mapping[str, float | int | str] = field(default_factory=dict)
    seconds: float = 0.0


def fine_tune(model: TorchExecutor, compressor: Compressor, period: int, task: Task) -> TrainingRecord:
    """Train what a compressor holds until the compressed model does what the float model does.

    The loss is the divergence of the class scores (relative squared error for other outputs) plus the relative
    squared error of the values between blocks, which a small set of samples determines far better than its few
    outputs do. With ``period`` 1 the compressed weights run at every step and gradients pass straight through the
    rounding; with a longer period the weights move freely and are projected every ``period`` mini-batches, and once
    more at the end. BatchNorm is folded into the weights, so trained biases take the place of its re-estimation.

    Args:
        model: executor of the float model, which is also the teacher.
        compressor: what is trained; it holds the result.
        period: mini-batches between projections.
        task: samples, outputs and schedule.

    Raises:
        QCompileError: nothing is to be trained, or the period is not positive, or there is neither a model nor a
            label to learn from.

    Source: Lee et al. 2021, Modulating Regularization Frequency for Efficient Compression-Aware Model Training
    (arXiv:2105.01875), for the period; its abstract was read, its schedules were not. The optimizer's moments are
    kept at a projection.
    """
    leaves = list(compressor.leaves())
    if not leaves or period < 1:
        raise QCompileError(f"nothing to train, or a period below 1 ({period})")
    if task.labels is None and not task.distills:
        raise QCompileError("nothing to learn from: no labels, and the float model does not count")
    plan = task.schedule
    started = time.perf_counter()
    optimizer = torch.optim.Adam(leaves, lr=plan.learning_rate, betas=BETAS)
    generator = torch.Generator().manual_seed(plan.seed)
    matcher = _Matcher(model, task)
    losses: list[float] = []
    for step in range(plan.steps):
        if task.finished():
            break
        rate = _rate(plan, step, task.gone())
        for group in optimizer.param_groups:
            group["lr"] = rate
        binding = compressor.compressed(task.base) if period == 1 else compressor.loose(task.base)
        loss = matcher.loss(binding, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if period > 1 and (step + 1) % period == 0:
            compressor.project()
        task.progress(step + 1)
    if period > 1:
        compressor.project()
    return TrainingRecord(
        steps=len(losses),
        period=period,
        losses=_condensed(losses),
        features=len(matcher.features),
        options=_options(plan),
        seconds=time.perf_counter() - started,
    )


def _rate(plan: Schedule, step: int, gone: float) -> float:
    """Return the learning rate of a step, when a share of the time is gone."""
    over = min(max(step / plan.steps, gone), 1.0)
    expected = min(plan.steps, step / gone) if gone > 0 else plan.steps
    share = min(1.0, expected / plan.full_rate_steps) if plan.full_rate_steps else 1.0
    return plan.learning_rate * share * 0.5 * (1 + math.cos(math.pi * over))


def _options(plan: Schedule) -> dict[str, float | int | str]:
    """Return what a result depends on, for a report."""
    return {
        **{"optimizer": "Adam, moments kept at projections", "beta1": BETAS[0], "beta2": BETAS[1]},
        **{"learning rate": plan.learning_rate, "full rate from": plan.full_rate_steps, "decay": "half a cosine"},
        **{"batch rows": plan.batch_rows},
        **{"feature weight": plan.feature_weight, "augment": str(plan.augment).lower(), "seed": plan.seed},
        **{"half precision": str(plan.half).lower()},
    }


class _Matcher:
    """The loss of mini-batches: distance of the trained model from the float one."""

    def __init__(self, model: TorchExecutor, task: Task) -> None:
        self._model, self._task = model, task
        self._rows = max(int(v.shape[0]) for v in task.samples.values() if v.dim())
        made = {n for s in model.steps for n in s.outputs}
        inner = [n for n in block_outputs(model.model) if n in made and n not in task.outputs]
        self.features = tuple(inner) if task.schedule.feature_weight > 0 and task.distills else ()

    def loss(self, binding: Binding, generator: torch.Generator) -> Tensor:
        """Return the loss of one random mini-batch."""
        task = self._task
        size = min(task.schedule.batch_rows, self._rows)
        rows = torch.randperm(self._rows, generator=generator)[:size]
        feeds = {n: v[rows.to(v.device)] if v.dim() else v for n, v in task.samples.items()}
        labels = None if task.labels is None else task.labels[rows]
        if task.schedule.augment and labels is None:
            feeds = varied(feeds, generator)
        names = (*task.outputs, *self.features)
        with _products(half=task.schedule.half):
            with torch.no_grad():
                wanted = self._model.run(feeds, names)
            found = self._model.run(feeds, names, binding=binding)
        found, wanted = ({n: v.float() for n, v in values.items()} for values in (found, wanted))
        total = sum((self._distance(n, found, wanted, labels) for n in task.outputs), torch.zeros(()))
        total = total / len(task.outputs)
        if self.features:
            errors = torch.stack([relative_error(found[n], wanted[n]) for n in self.features])
            total = total + task.schedule.feature_weight * errors.mean()
        return total

    def _distance(self, name: str, found: Tensors, wanted: Tensors, labels: Tensor | None) -> Tensor:
        if name not in self._task.classes:
            return relative_error(found[name], wanted[name]) if self._task.distills else torch.zeros(())
        here = torch.log_softmax(found[name], -1)
        distance = divergence(found[name], wanted[name]) if self._task.distills else torch.zeros(())
        if labels is None or here.shape[:-1] != labels.shape:
            return distance
        entropy = torch.nn.functional.nll_loss(here.flatten(0, -2), labels.flatten().to(here.device))
        return distance + entropy


def _products(*, half: bool) -> torch.autocast:
    """Return a context in which matrices are multiplied in bfloat16, if that is wanted and the processor does it."""
    able = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=half and able)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error over the power of what is wanted, shape ()."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=SMALLEST_POWER)


def divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean KL(wanted || found) in nats of the distributions that logits stand for, shape ()."""
    there = torch.log_softmax(wanted, -1)
    return (there.exp() * (there - torch.log_softmax(found, -1))).sum(-1).mean()


def _condensed(losses: Sequence[float]) -> tuple[float, ...]:
    """Return the means of at most ``TRACE`` equal stretches."""
    width = max(1, math.ceil(len(losses) / TRACE))
    parts = [losses[i : i + width] for i in range(0, len(losses), width)]
    return tuple(sum(part) / len(part) for part in parts)
