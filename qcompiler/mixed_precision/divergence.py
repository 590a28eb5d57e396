"""How far a changed model is from the float one: the loss that sensitivities and predictions are in."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.errors import DataError, RuntimeUnavailable
from qcompiler.model.measured import FLOATS, measured_values
from qcompiler.runtime.capture import Executor, stream

HOPELESS = 1e3
"""The loss of a model that does not run, or that answers with what is no number."""


class Divergence:
    """The mean loss of changed models against one float model, over its float outputs and some samples.

    Class scores count by the Kullback-Leibler divergence of their probabilities from the float model's, in nats;
    every other output by its squared error over its own power. Outputs add up.

    Args:
        model: the float model.
        samples: what it runs on.
        classes: names of outputs that hold class scores.
        threads: of every session.
    """

    def __init__(self, model: ir.Model, samples: Dataset, classes: Collection[str], threads: int) -> None:
        self._samples, self._threads = samples, threads
        names = measured_values(model)
        outputs = [v.name or "" for v in model.graph.outputs if _is_float(v)]
        self._scored = [name in classes for name in outputs]
        self._expected = [
            [np.asarray(values[n]) for n in names] for values in stream(model, names, samples, threads=threads)
        ]

    @property
    def unit(self) -> str:
        """What the loss is, in words."""
        if all(self._scored) and self._scored:
            return "KL divergence of the class probabilities, in nats"
        if not any(self._scored):
            return "squared error of the outputs over their power"
        return "KL divergence (class scores) plus squared error over power (other outputs)"

    def __call__(self, model: ir.Model) -> float:
        """Return the loss of a changed model, at least 0; ``HOPELESS`` if it does not run."""
        names = measured_values(model)
        divergence, signal, error = np.zeros(len(names)), np.zeros(len(names)), np.zeros(len(names))
        try:
            executor = Executor(model, names, self._threads)
            for index, expected in enumerate(self._expected):
                found = executor.run(self._samples[index])
                for which, name in enumerate(names):
                    wanted, got = expected[which].astype(np.float64), np.asarray(found[name], np.float64)
                    if got.shape != wanted.shape or not np.isfinite(got[np.isfinite(wanted)]).all():
                        return HOPELESS
                    if self._scored[which]:
                        divergence[which] += kl_divergence(wanted, got)
                    else:
                        known = np.isfinite(wanted)
                        signal[which] += float(np.sum(wanted[known] ** 2))
                        error[which] += float(np.sum((wanted[known] - got[known]) ** 2))
        except (RuntimeUnavailable, DataError):
            return HOPELESS
        relative = np.divide(error, signal, out=np.zeros_like(error), where=signal > 0)
        return min(float(np.sum(divergence / max(len(self._expected), 1) + relative)), HOPELESS)


def kl_divergence(expected: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    """Return the mean over rows of KL(softmax(expected) || softmax(found)), in nats, at least 0.

    Args:
        expected: floating, shape (rows, classes), logits.
        found: floating, the same shape.
    """
    return max(float(_divergences(expected, found).mean()), 0.0)


def root_divergence(expected: NDArray[np.floating], found: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the root of the divergence of every row, float64 (rows,); arguments as for ``kl_divergence``."""
    return np.asarray(np.sqrt(np.maximum(_divergences(expected, found), 0.0)))


def _divergences(expected: NDArray[np.floating], found: NDArray[np.floating]) -> NDArray[np.float64]:
    first, second = log_softmax(expected), log_softmax(found)
    return np.asarray(np.sum(np.exp(first) * (first - second), axis=-1))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities, float64 of the same shape, over the last axis."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))


def _is_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype in FLOATS
