"""How fast candidates are evaluated, and how fast they could be: the cost of the steps that they change.

On a CPU times are processor seconds of this process, all threads together: other programs do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.executor.binding import Binding
from qcompiler.executor.executor import TorchExecutor
from qcompiler.executor.oracle import LossOracle


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpeed:
    """Evaluation of candidates that differ from one step on.

    Attributes:
        candidates_per_s: measured.
        bound_per_s: what a full evaluation of the loss takes, less the share of the steps before.
        full_s: seconds of a full evaluation of the loss.
        suffix_share: time of the steps from the candidates' on, over that of all steps.
    """

    candidates_per_s: float
    bound_per_s: float
    full_s: float
    suffix_share: float


def step_seconds(
    executor: TorchExecutor, feeds: Mapping[str, torch.Tensor], binding: Binding, repeats: int = 5
) -> NDArray[np.float64]:
    """Return the seconds that every step takes, the least of some repeats, shape (steps,)."""
    best = np.full(len(executor.steps), np.inf)
    with torch.no_grad():
        for _ in range(repeats):
            live = dict(feeds)
            for index in range(len(executor.steps)):
                start = _now(executor)
                live = executor.run(live, binding=binding, start=index, stop=index + 1)
                best[index] = min(best[index], _now(executor) - start)
    return best


def search_speed(
    oracle: LossOracle, step: int, bindings: Sequence[Binding], seconds: NDArray[np.float64], repeats: int = 3
) -> SearchSpeed:
    """Measure the evaluation of candidates at a step.

    Args:
        oracle: what evaluates them.
        step: their first step.
        bindings: the candidates.
        seconds: of every step, from ``step_seconds``.
        repeats: of every measurement; the fastest counts.
    """
    oracle.candidates(step, bindings[:1])  # computes the prefix
    full = _fastest(oracle.executor, oracle.loss, repeats)
    taken = _fastest(oracle.executor, lambda: oracle.candidates(step, bindings), repeats)
    share = float(seconds[step:].sum() / seconds.sum())
    return SearchSpeed(
        candidates_per_s=len(bindings) / taken,
        bound_per_s=1.0 / max(full * share, 1e-12),
        full_s=full,
        suffix_share=share,
    )


def _fastest(executor: TorchExecutor, run: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = _now(executor)
        run()
        best = min(best, _now(executor) - start)
    return best


def _now(executor: TorchExecutor) -> float:
    """Return a time in seconds: of the processor for this process alone, or of the clock once the GPU is idle."""
    if executor.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(executor.device)
    return time.perf_counter()
