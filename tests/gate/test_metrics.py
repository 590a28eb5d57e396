"""Metrics that are functions of the user: what they get, and what is said where they fail."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from qcompiler.compiler import compile_model
from qcompiler.errors import DataError, UsageError
from qcompiler.gate.floors import FloorInputs, check_floors
from qcompiler.gate.metrics import check_metric, compare_metric
from qcompiler.recipe import Floors, Recipe
from qcompiler.records import MetricComparison, Verdict
from qcompiler.report.digest import floor_sentence
from tests.models import dense_net, save

LABELS = np.asarray([1, 0], np.int64)


@pytest.fixture
def saved(tmp_path):
    """Return the outputs of two samples as the gate's child leaves them."""
    path = tmp_path / "outputs.npz"
    scores = {"original": ([0.0, 1.0], [1.0, 0.0]), "result": ([0.0, 1.0], [0.0, 1.0])}
    np.savez(path, **{f"{k}/{i:05d}/scores": np.asarray([r]) for k, rows in scores.items() for i, r in enumerate(rows)})
    return path


@pytest.fixture
def metric(monkeypatch):
    """Return what makes a function importable as ``given:metric``."""

    def provide(function):
        module = types.ModuleType("given")
        module.metric = function
        monkeypatch.setitem(sys.modules, "given", module)
        return "given:metric"

    return provide


def accuracy(outputs, labels):
    return float(np.mean([row.argmax() == label for row, label in zip(outputs["scores"], labels, strict=True)]))


def broken(outputs, labels):
    raise ValueError("no such\n  class")


def broken_for_the_result(outputs, labels):
    return float("inf") if np.argmax(outputs["scores"][1]) else 1.0


def test_both_models_get_their_figure(saved, metric):
    found = compare_metric(metric(accuracy), [], frozenset(), LABELS, saved)
    assert (found.original, found.result, found.samples) == (1.0, 0.5, 2)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (broken, "metric given:metric raised ValueError on the outputs of the original: no such class"),
        (lambda outputs, labels: float("nan"), "metric given:metric gave nan for the original"),
        (broken_for_the_result, "metric given:metric gave inf for the result"),
        (lambda outputs, labels: "high", "metric given:metric gave 'high' for the original; it must return one number"),
        (lambda outputs, labels: None, "metric given:metric gave None for the original"),
    ],
)
def test_what_is_no_figure_is_refused_in_one_line(saved, metric, function, said):
    with pytest.raises(DataError) as caught:
        compare_metric(metric(function), [], frozenset(), LABELS, saved)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_metric_that_cannot_be_loaded_ends_before_the_work_begins(tmp_path, metric):
    check_metric(Recipe())
    check_metric(Recipe(metric=metric(accuracy)))
    begun = []
    recipe = Recipe(targets=("reference",), metric="given:missing")
    with pytest.raises(DataError, match="cannot load given:missing"):
        compile_model(
            save(dense_net(), tmp_path), recipe=recipe, out=tmp_path / "out", progress=lambda *w: begun.append(w)
        )
    assert not begun


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({}, True),
        ({"metric": "sqnr", "labels": "l.npy"}, True),
        ({"metric": "top1"}, True),
        ({"labels": "l.npy"}, False),
        ({"metric": "cosine"}, False),
        ({"floors": Floors(), "metric": "sqnr"}, False),
    ],
)
def test_a_limited_loss_of_no_metric_ends_before_the_work_begins(fields, refused):
    recipe = Recipe(**{"floors": Floors(max_drop=0.5), **fields})
    if not refused:
        check_metric(recipe)
        return
    with pytest.raises(
        UsageError, match=r"--max-drop 0\.5 limits the loss of a metric, and there is none: give --labels"
    ):
        check_metric(recipe)


def test_a_floor_without_a_metric_says_what_would_give_one():
    verdict = Verdict(loaded=True, data="held-out samples", samples=2)
    (floor, *_) = check_floors(floor_inputs(Floors(max_drop=0.5)), verdict)
    said = "loss of the metric was not measured where at most 0.5 points was asked (there is no metric: give --labels"
    assert floor_sentence(floor).startswith(said)


def test_the_loss_of_a_users_metric_has_no_unit():
    metric = MetricComparison(name="given:metric", original=5.0, result=4.5, samples=2)
    verdict = Verdict(loaded=True, data="held-out samples", samples=2, metric=metric)
    (floor, *_) = check_floors(floor_inputs(Floors(max_drop=0.25)), verdict)
    assert floor_sentence(floor) == "loss of given:metric is 0.5 where at most 0.25 was asked"


def floor_inputs(asked):
    return FloorInputs(
        asked=asked,
        real=True,
        require_data=False,
        unchanged=True,
        executes_here=False,
        original_bytes=100,
        model_bytes=50,
    )
