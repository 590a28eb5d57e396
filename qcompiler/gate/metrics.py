"""The user's metric on original and result: top-1, cosine, or a function of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data import load_callable
from qcompiler.errors import DataError, UsageError
from qcompiler.model.probe import shorten
from qcompiler.recipe import Recipe
from qcompiler.records import MetricComparison
from qcompiler.runtime.gate_process import output_comparison

Metric = Callable[[dict[str, list[NDArray[Any]]], "NDArray[np.int64] | None"], float]
"""A user's metric: {output name: arrays, one per sample} and the labels (or None) -> a figure, larger is better."""


def check_metric(recipe: Recipe) -> None:
    """Check that the metric of a recipe can be computed, as far as that shows before the work begins.

    Raises:
        DataError: it is a function that cannot be imported.
        UsageError: its loss is limited, and there is no metric.
    """
    if ":" in recipe.metric:
        load_callable(recipe.metric)
    if recipe.floors.max_drop is not None and not recipe.has_metric:
        raise UsageError(
            f"--max-drop {recipe.floors.max_drop:g} limits the loss of a metric, and there is none: give --labels for "
            "top-1, or --metric with cosine or module:function; --min-sqnr limits the noise"
        )


def compare_metric(
    spec: str,
    outputs: Sequence[dict[str, Any]],
    classes: frozenset[str],
    labels: NDArray[np.int64] | None,
    saved: Path,
) -> MetricComparison | None:
    """Return the metric of both models, None if there is none to compute.

    Args:
        spec: "auto", "top1", "sqnr", "cosine" or ``module:function``.
        outputs: sums of every output, as the gate's child reported them.
        classes: names of outputs that hold class scores.
        labels: int64, one per row; None without labels.
        saved: where the child saved all outputs, for ``module:function``.

    Raises:
        UsageError: the metric does not fit the model.
        DataError: the function cannot be imported, it failed, or what it gave is no number.
    """
    if ":" in spec:
        return _user_metric(spec, labels, saved)
    if spec == "cosine":
        found = [output_comparison(o, classes=False) for o in outputs]
        worst = min((o.cosine for o in found), default=1.0)
        samples = max((o.samples for o in found), default=0)
        return MetricComparison(name="cosine", original=1.0, result=worst, samples=samples)
    if labels is None or spec not in ("auto", "top1"):
        return None
    truth = labels.reshape(-1)
    for output in outputs:
        expected, answered = (np.asarray(a) for a in output["answers"])
        if output["name"] in classes and expected.shape == truth.shape:
            return _top1(expected == truth, answered == truth)
    if spec == "top1":
        raise UsageError("metric top1 needs an output of class scores, shape (batch, classes); this model has none")
    return None


def _top1(right: NDArray[np.bool_], kept: NDArray[np.bool_]) -> MetricComparison:
    return MetricComparison(
        name="top1",
        original=100.0 * float(right.mean()),
        result=100.0 * float(kept.mean()),
        samples=int(right.size),
        lost=int((right & ~kept).sum()),
        gained=int((~right & kept).sum()),
    )


def _user_metric(spec: str, labels: NDArray[np.int64] | None, saved: Path) -> MetricComparison:
    function: Metric = load_callable(spec)
    values, samples = [], 0
    with np.load(saved, allow_pickle=False) as archive:
        for kind in ("original", "result"):
            outputs: dict[str, list[NDArray[Any]]] = {}
            for key in sorted(k for k in archive.files if k.startswith(kind)):
                outputs.setdefault(key.split("/", 2)[2], []).append(archive[key])
            samples = max((len(v) for v in outputs.values()), default=0)
            values.append(_figure(spec, function, outputs, labels, kind))
    return MetricComparison(name=spec, original=values[0], result=values[1], samples=samples)


def _figure(
    spec: str,
    function: Metric,
    outputs: dict[str, list[NDArray[Any]]],
    labels: NDArray[np.int64] | None,
    kind: str,
) -> float:
    """Return what the user's function makes of one model's outputs."""
    try:
        given = function(outputs, labels)
    except Exception as error:  # the user's code may raise anything; it is theirs to mend
        text = " ".join(str(error).split())
        raise DataError(
            f"metric {spec} raised {type(error).__name__} on the outputs of the {kind}: {text}; mend the function"
        ) from error
    try:
        value = float(given)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"metric {spec} gave {shorten(repr(given))} for the {kind}; it must return one number, larger is better"
        ) from error
    if not math.isfinite(value):
        raise DataError(f"metric {spec} gave {value} for the {kind}; it must return a finite number")
    return value
