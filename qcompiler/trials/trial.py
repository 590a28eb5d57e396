"""Trial runs: how good would the result be if this state were finished now? Searches decide by the answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.budget import NO_CHECKPOINT
from qcompiler.data import Dataset, Subset
from qcompiler.errors import DataError, RuntimeUnavailable
from qcompiler.mixed_precision.divergence import root_divergence
from qcompiler.model.measured import FLOATS, measured_values
from qcompiler.passes import LOSSLESS
from qcompiler.pipeline import Pipeline
from qcompiler.protocols import Target
from qcompiler.quant.grid import power_ratio_db
from qcompiler.registry import make_pass
from qcompiler.runtime.capture import Executor, stream
from qcompiler.samples import distributions
from qcompiler.state import Context, Fact, State

FINISHING: tuple[tuple[Fact, str], ...] = (
    (Fact.PLACEMENT, "place"),
    (Fact.STATISTICS, "observe"),
    (Fact.WEIGHT_SCALES, "scale-weights"),
    (Fact.RANGES, "calibrate{method=mse}"),
)
"""What is run, in order, for every fact that a state lacks."""


WORTHLESS_DB = -200.0

__all__ = ["Trial", "layer_levels", "measured_values"]

OBSERVED = 8
"""Samples observed in a trial that has no statistics yet."""


class Trial:
    """Finishes a state in the plainest way, runs it on acceptance samples, and compares with the float model.

    Args:
        reference: the float model.
        target: whose lowering passes write the trial model.
        acceptance: samples that the search may look at; the gate's samples are others.
        context: of the compilation; its recipe and calibration samples are used.
    """

    def __init__(self, reference: ir.Model, target: Target, acceptance: Dataset, context: Context) -> None:
        self._samples, self._target = acceptance, target
        names = measured_values(reference)
        threads = context.recipe.threads
        classes = distributions(reference)
        floats = [v.name or "" for v in reference.graph.outputs if v.dtype in FLOATS]
        self._scores = frozenset(i for i, name in enumerate(floats) if name in classes)
        self._expected = [
            [np.asarray(values[n]) for n in names] for values in stream(reference, names, acceptance, threads=threads)
        ]
        few = context.calibration
        if few is not None and len(few) > OBSERVED:
            few = Subset(few, tuple(range(0, len(few), len(few) // OBSERVED)[:OBSERVED]))
        quiet = replace(context, progress=_quiet, checkpoint=NO_CHECKPOINT)
        self._context = replace(quiet, calibration=few, trial=None)

    def lowered(self, state: State) -> ir.Model:
        """Return the state's model with the plan written into it, completed where facts are missing."""
        names = [name for fact, name in FINISHING if fact not in state.facts]
        names += ["correct-bias", *(n for n in self._target.lower_passes() if n not in LOSSLESS)]
        steps = Pipeline(tuple(make_pass(n) for n in names), check=False)
        return steps.run(state, self._context)[0].model

    def __call__(self, state: State) -> float:
        """Return the SQNR of the finished state on the acceptance samples, in dB, over all float outputs.

        Outputs count alike: the mean of their error-to-signal ratios is what is returned. What the runtime
        does not load or run is worth nothing.
        """
        return self._level(state)

    def closeness(self, state: State) -> float:
        """Return how close the answers of the finished state are to the float model's, in dB.

        Of class scores it is the root of the divergence of their probabilities, averaged over rows and taken as an
        amplitude: what all scores of a row have in common changes no answer, and the mean of the divergence itself
        would hang on the few rows between two classes. Of every other output it is the SQNR.
        """
        return self._level(state, self._scores)

    def _level(self, state: State, scores: Collection[int] = ()) -> float:
        try:
            return self._measured(self.lowered(state), scores)
        except (RuntimeUnavailable, DataError):
            return WORTHLESS_DB

    def _measured(self, model: ir.Model, scores: Collection[int]) -> float:
        names = measured_values(model)
        executor = Executor(model, names, self._context.recipe.threads)
        signal, error = np.zeros(len(names)), np.zeros(len(names))
        for index, expected in enumerate(self._expected):
            found = executor.run(self._samples[index])
            for which, name in enumerate(names):
                got = np.asarray(found[name])
                if which in scores and got.shape == expected[which].shape:
                    roots = root_divergence(expected[which], np.nan_to_num(got))
                    signal[which] += roots.size
                    error[which] += float(roots.sum())
                else:
                    a, b = _finite(expected[which], got)
                    signal[which] += float(a @ a)
                    error[which] += float(np.sum((a - b) ** 2))
        for which in scores:
            error[which] *= error[which] / max(signal[which], 1.0)
        live = signal > 0
        ratio = float(np.mean(error[live] / signal[live])) if live.any() else 0.0
        level = power_ratio_db(1.0, ratio)
        return 200.0 if level is None else level


def layer_levels(
    reference: ir.Model, lowered: ir.Model, names: Sequence[str], samples: Dataset, threads: int
) -> dict[str, float]:
    """Return the SQNR of inner values of the compiled model against the float model, in dB.

    Args:
        reference: the float model that was lowered.
        lowered: the same model with the plan written into it.
        names: values of ``reference`` that are quantized in ``lowered``.
        samples: a few samples.
        threads: of both sessions.
    """
    there = {v.name for n in lowered.graph for v in n.outputs}
    pairs = {n: (f"{n}_dq" if f"{n}_dq" in there else n) for n in names if f"{n}_dq" in there or n in there}
    first, second = (
        Executor(reference, list(pairs), threads),
        Executor(lowered, list(pairs.values()), threads),
    )
    signal, error = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0.0)
    for index in range(len(samples)):
        expected, found = first.run(samples[index]), second.run(samples[index])
        for name, inner in pairs.items():
            a, b = _finite(np.asarray(expected[name]), np.asarray(found[inner]))
            signal[name] += float(a @ a)
            error[name] += float(np.sum((a - b) ** 2))
    levels = {n: power_ratio_db(signal[n], error[n]) for n in pairs}
    return {n: v for n, v in levels.items() if v is not None}


def _finite(
    expected: NDArray[np.floating], found: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is finite in the float model; an output of another shape, or NaN, counts as nothing at all."""
    keep = np.isfinite(expected)
    wanted = expected[keep].astype(np.float64)
    if found.shape != expected.shape:
        return wanted, np.zeros_like(wanted)
    return wanted, np.nan_to_num(found[keep].astype(np.float64), posinf=0.0, neginf=0.0)


def _quiet(what: str, done: int, total: int) -> None:
    """Say nothing: trials are steps of another loop."""
