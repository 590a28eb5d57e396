"""How good a binding is on samples that no training has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.executor.batching import row_count, rows_of
from qcompiler.executor.binding import Binding
from qcompiler.executor.loss import ROWS_AT_ONCE
from qcompiler.executor.setup import SearchSetup


def held_out_loss(setup: SearchSetup, binding: Binding) -> float:
    """Return the mean distance from the float model over the acceptance samples."""
    rows = row_count(setup.held_out)
    step = ROWS_AT_ONCE if setup.axes is not None else 1
    total = 0.0
    with torch.no_grad():
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            found = setup.executor.run(rows_of(setup.held_out, part), setup.held_out_loss.outputs, binding=binding)
            total += float(setup.held_out_loss(found, part).sum(dtype=torch.float64))
    return total / rows


def held_out_entropy(setup: SearchSetup, binding: Binding, outputs: Sequence[str], labels: Tensor) -> float:
    """Return the mean cross entropy of labels in nats over the acceptance samples.

    Args:
        setup: with the samples.
        binding: the compressed model.
        outputs: values with logits, (rows, classes); the mean over them is taken.
        labels: int64 (rows,).
    """
    rows = row_count(setup.held_out)
    step = ROWS_AT_ONCE if setup.axes is not None else 1
    total = 0.0
    with torch.no_grad():
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            found = setup.executor.run(rows_of(setup.held_out, part), outputs, binding=binding)
            here = [
                torch.nn.functional.cross_entropy(v, labels[part].to(v.device), reduction="sum") for v in found.values()
            ]
            total += float(sum(float(v) for v in here)) / len(here)
    return total / rows
