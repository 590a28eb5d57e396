"""What every search in PyTorch starts from: the executor of a state, its samples in batches, and the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcompiler.data import Dataset
from qcompiler.errors import DataError, ModelError, QCompileError
from qcompiler.executor.batching import Axes, batch_axes, stack
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.executor.loss import DistillationLoss
from qcompiler.plan import Role
from qcompiler.runtime.capture import Feeds
from qcompiler.state import Context, State


@dataclass(frozen=True, slots=True, eq=False)
class SearchSetup:
    """A model ready to be searched or trained in PyTorch.

    Attributes:
        executor: of the state's float graph.
        axes: where the samples of every value lie; None if they must run one by one.
        samples: stacked calibration samples.
        loss: distance from the float model on these samples.
        held_out / held_out_loss: the same for the acceptance samples, by which results are chosen.
    """

    executor: TorchExecutor
    axes: Axes | None
    samples: Tensors
    loss: DistillationLoss
    held_out: Tensors
    held_out_loss: DistillationLoss


def low_bit_weights(state: State) -> tuple[str, ...]:
    """Return the weights that are planned with fewer than 8 bits: what searches are for."""
    tensors = state.plan.tensors.values()
    return tuple(t.name for t in tensors if t.role is Role.WEIGHT and t.spec is not None and t.spec.num_bits < 8)


def search_device() -> str:
    """Return where searches compute: the accelerator if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def reads_tokens(executor: TorchExecutor) -> bool:
    """Return True if all inputs of a model are integers, as the tokens of sentences are."""
    inputs = executor.model.graph.inputs
    return bool(inputs) and all(v.dtype is not None and v.dtype.is_integer() for v in inputs)


def prepare_search(state: State, context: Context) -> SearchSetup | str:
    """Return what a search needs, or why this model cannot be searched in PyTorch, in words.

    Args:
        state: a planned state.
        context: with calibration and acceptance samples.
    """
    if context.calibration is None or context.acceptance is None:
        return "a search needs samples; give --data"
    try:
        executor = TorchExecutor(state.model, device=search_device())
        axes = batch_axes(executor)
        samples, held_out = (stack(_rows(d), executor) for d in (context.calibration, context.acceptance))
        return SearchSetup(
            executor,
            axes,
            samples,
            DistillationLoss(executor, samples, axes),
            held_out,
            DistillationLoss(executor, held_out, axes),
        )
    except (ModelError, DataError, QCompileError) as error:
        return str(error)


def _rows(samples: Dataset) -> list[Feeds]:
    return [samples[i] for i in range(len(samples))]
