"""The mean output of a layer per channel, exactly, from the mean of its input: layers are linear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.executor.batching import Axes, row_count, rows_of
from qcompiler.executor.binding import EMPTY, Binding
from qcompiler.executor.executor import Step, Tensors, TorchExecutor
from qcompiler.executor.oracle import LossOracle

ROWS_AT_ONCE = 8
"""Rows of one run that keeps the inputs of all layers."""


def float_means(executor: TorchExecutor, samples: Tensors, axes: Axes | None, steps: Sequence[int]) -> Tensors:
    """Return the mean over all rows of the input of some steps in the float model, by value name.

    Values whose rows do not lie along their first axis are left out.
    """
    names = [executor.steps[s].inputs[0] for s in steps]
    wanted = tuple(dict.fromkeys(n for n in names if _has_rows(n, axes) and n not in executor.parameters))
    count, size = row_count(samples), ROWS_AT_ONCE if axes is not None else 1
    sums: Tensors = {}
    with torch.no_grad():
        for first in range(0, count, size):
            part = rows_of(samples, slice(first, min(first + size, count)))
            found = executor.run(part, wanted, binding=EMPTY)
            for name in wanted:
                _add(sums, name, found[name])
    return {name: total / count for name, total in sums.items()}


def quantized_mean(oracle: LossOracle, step: int, rows: int, axes: Axes | None) -> torch.Tensor | None:
    """Return the mean over all rows of what a layer reads in the quantized model, None if rows are not its first axis.

    Args:
        oracle: whose base is the quantized model.
        step: number of the layer's step; the values before it are kept by the oracle.
        rows: samples of the oracle.
        axes: of the model.
    """
    reader = oracle.executor.steps[step]
    name = reader.inputs[0]
    if not _has_rows(name, axes) or name in oracle.executor.parameters:
        return None
    sums: Tensors = {}
    for live in oracle.before(step):
        _add(sums, name, _as_read(live[name], name, reader, oracle.binding))
    return sums[name] / rows


def _has_rows(name: str, axes: Axes | None) -> bool:
    return axes is None or axes.get(name) == 0


def _add(sums: Tensors, name: str, value: torch.Tensor) -> None:
    total = value.sum(0, keepdim=True)
    sums[name] = sums[name] + total if name in sums else total


def _as_read(value: torch.Tensor, name: str, reader: Step, binding: Binding) -> torch.Tensor:
    function = binding.values.get(name)
    return function(value) if function is not None and binding.is_seen_by(name, reader.name) else value


def channel_means(step: Step, mean: torch.Tensor, weight: torch.Tensor) -> NDArray[np.float64]:
    """Return the mean of a Conv's or Gemm's output per channel, without its bias; float64, shape (channels,).

    Args:
        step: the layer.
        mean: of its input over all rows, with a first axis of 1.
        weight: what it multiplies with.
    """
    with torch.no_grad():
        made = step.kernel(mean, weight, None)
    output = made[0] if isinstance(made, tuple) else made
    channels = output.movedim(1, 0).reshape(output.shape[1], -1)
    return np.asarray(channels.mean(1, dtype=torch.float64).cpu().numpy())
