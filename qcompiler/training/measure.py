"""How good a binding is on samples that no training has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.executor.batching import row_count, rows_of
from qcompiler.executor.binding import EMPTY, Binding
from qcompiler.executor.loss import ROWS_AT_ONCE
from qcompiler.executor.setup import SearchSetup

SMALLEST_POWER = 1e-30


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


def held_out_distance(setup: SearchSetup, binding: Binding) -> float:
    """Return how far a binding is from the float model on the acceptance samples, so that few of them can tell.

    Of class scores it is the mean over rows, and over places where a row has several, of the root of their
    divergence: the divergence itself mostly comes from the two or three rows that happen to lie near a border between
    classes. Of any other output it is the relative squared error. Outputs are averaged.
    """
    rows, step = row_count(setup.held_out), ROWS_AT_ONCE if setup.axes is not None else 1
    names, classes = setup.held_out_loss.outputs, setup.held_out_loss.classes
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in names}
    with torch.no_grad():
        for first in range(0, rows, step):
            part = rows_of(setup.held_out, slice(first, min(first + step, rows)))
            found, wanted = (setup.executor.run(part, names, binding=b) for b in (binding, EMPTY))
            for name in names:
                sums[name] += _sums(found[name], wanted[name], scores=name in classes)
    total = 0.0
    for name, (roots, places, error, power) in ((n, s.tolist()) for n, s in sums.items()):
        total += roots / max(places, 1.0) if name in classes else error / max(power, SMALLEST_POWER)
    return total / len(names)


def _sums(found: Tensor, wanted: Tensor, *, scores: bool) -> Tensor:
    """Return summed roots of divergences, how many, squared error and power of some rows, float64 of shape (4,)."""
    a, b = (v.detach().double().nan_to_num(0.0, 0.0, 0.0) for v in (found, wanted))
    roots = torch.zeros(0, dtype=torch.float64)
    if scores:
        there, here = torch.log_softmax(b, -1), torch.log_softmax(a, -1)
        roots = (there.exp() * (there - here)).sum(-1).clamp(min=0.0).sqrt().cpu()
    count = torch.tensor(float(roots.numel()), dtype=torch.float64)
    return torch.stack([roots.sum(), count, (a - b).square().sum().cpu(), b.square().sum().cpu()])


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
