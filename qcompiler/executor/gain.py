"""Whether one simulation is nearer to the float model than another, on samples that no search has seen."""

from __future__ import annotations

import math

import torch

from qcompiler.executor.batching import row_count, rows_of
from qcompiler.executor.binding import Binding
from qcompiler.executor.loss import ROWS_AT_ONCE
from qcompiler.executor.setup import SearchSetup


def held_out_gain(setup: SearchSetup, before: Binding, after: Binding) -> tuple[float, float]:
    """Return by how much the distance on acceptance samples shrinks, and the standard error of that mean.

    Rows are compared in pairs. With fewer than two the standard error is 0.
    """
    rows, step = row_count(setup.held_out), ROWS_AT_ONCE if setup.axes is not None else 1
    parts = []
    with torch.no_grad():
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            feeds = rows_of(setup.held_out, part)
            runs = (setup.executor.run(feeds, setup.held_out_loss.outputs, binding=b) for b in (before, after))
            worse, better = (setup.held_out_loss(found, part).reshape(-1).double().cpu() for found in runs)
            parts.append(worse - better)
    gains = torch.cat(parts)
    spread = float(gains.std()) if len(gains) > 1 else 0.0
    return float(gains.mean()), spread / math.sqrt(len(gains))
