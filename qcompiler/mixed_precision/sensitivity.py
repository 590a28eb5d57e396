"""How much the task loss rises when one layer gets fewer bits: measured once a layer, predicted for every width.

The error that rounding leaves in a layer's output is known for every width from the weight and the variance of its
input. How much the network's loss rises with that error is measured, by one run of the float model with that one
weight rounded; to second order the loss is linear in the squared error, so that slope holds for all widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset, Subset
from qcompiler.mixed_precision.changed import with_weight
from qcompiler.mixed_precision.divergence import HOPELESS, Divergence
from qcompiler.mixed_precision.widths import PACKING_BYTES, Choosable, row_importance, weight_rows
from qcompiler.quant.allocation import Item
from qcompiler.quant.width_error import rank_correlation, round_rows, width_errors
from qcompiler.samples import distributions, model_macs
from qcompiler.state import Context, State

WORK_MACS = 100e9
"""What the measured runs may compute together; it decides how many samples each of them sees, not the clock."""
FEWEST, MOST = 2, 16
"""Samples of one measured run."""
CLEAR_ERROR = 0.05
"""A layer is measured at the narrowest width that leaves at most this share of its output as error."""
CHECKS = 16
"""Other pairs of layer and width that are measured, to see how well the predictions rank."""
CHECK_WIDTHS = (2, 3, 4, 5, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """The predicted loss of every layer at every width.

    Attributes:
        items: one a weight, in graph order.
        unit: what the loss is.
        trials: runs that were measured; 0 without data or search, and layers are compared by their own error.
        samples: of each run.
        correlation: Spearman's rank correlation of predicted with measured loss over ``checked`` other runs.
    """

    items: tuple[Item, ...]
    unit: str
    trials: int = 0
    samples: int = 0
    correlation: float | None = None
    checked: int = 0


def sensitivities(
    state: State, layers: Sequence[Choosable], widths: Sequence[tuple[int, ...]], context: Context
) -> Sensitivities:
    """Return the predicted rise of the loss for every layer and width.

    Args:
        state: placed; observed where there is data.
        layers: the weights.
        widths: those that each weight may take, rising.
        context: its calibration samples are run.
    """
    errors = []
    for number, (layer, own) in enumerate(zip(layers, widths, strict=True)):
        errors.append(_errors(state, layer, own))
        context.progress("rounding layers", number + 1, len(layers))
    if context.calibration is None or not layers:
        unit = "sum over the layers of their outputs' relative error (nothing was measured)"
        return Sensitivities(items=_items(layers, widths, errors, np.ones(len(layers))), unit=unit)
    few = few_samples(context.calibration, state.model, len(layers))
    classes = distributions(state.model)
    probe = _Probe(state, Divergence(state.model, few, classes, context.recipe.threads))
    slopes = np.zeros(len(layers))
    for number, (layer, own) in enumerate(zip(layers, widths, strict=True)):
        slopes[number] = _slope(probe, layer, own, errors[number])
        context.progress("measuring layers", number + 1, len(layers))
    items = _items(layers, widths, errors, slopes)
    correlation, checked = _check(probe, layers, items, context)
    return Sensitivities(
        items=items,
        unit=probe.loss.unit,
        trials=probe.trials,
        samples=len(few),
        correlation=correlation,
        checked=checked,
    )


def _errors(state: State, layer: Choosable, widths: tuple[int, ...]) -> NDArray[np.float64]:
    return width_errors(weight_rows(layer), row_importance(state, layer), widths)


def _items(
    layers: Sequence[Choosable],
    widths: Sequence[tuple[int, ...]],
    errors: Sequence[NDArray[np.float64]],
    slopes: NDArray[np.float64],
) -> tuple[Item, ...]:
    return tuple(
        Item(
            name=layer.name,
            weights=layer.size,
            bits=own,
            loss=tuple(float(e) * float(slope) for e in error),
            packing_bytes=PACKING_BYTES,
        )
        for layer, own, error, slope in zip(layers, widths, errors, slopes, strict=True)
    )


def few_samples(samples: Dataset, model: ir.Model, runs: int, most: int = MOST) -> Dataset:
    """Return the samples of one measured run: as many as the work allows, spread over the calibration samples."""
    count = int(WORK_MACS / max(model_macs(model) * (runs + CHECKS), 1))
    count = min(max(FEWEST, min(most, count)), len(samples))
    return Subset(samples, tuple(int(i) for i in np.linspace(0, len(samples) - 1, count).round()))


class _Probe:
    """Runs the float model with one weight rounded, its mean error taken back by the bias."""

    def __init__(self, state: State, loss: Divergence) -> None:
        self.state, self.loss, self.trials = state, loss, 0

    def __call__(self, layer: Choosable, bits: int) -> float:
        """Return the loss with one weight at a width."""
        self.trials += 1
        return self.loss(self._rounded(layer, bits))

    def _rounded(self, layer: Choosable, bits: int) -> ir.Model:
        rows = round_rows(weight_rows(layer), row_importance(self.state, layer), bits).values
        weight, axis = layer.uses[0].inputs[1], layer.entry.spec.axis if layer.entry.spec is not None else None
        if weight is None or weight.const_value is None:
            return self.state.model
        shape = weight.const_value.shape.numpy()
        if axis is None:
            return with_weight(self.state, layer.uses, layer.name, rows.reshape(shape))
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        array = np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))
        return with_weight(self.state, layer.uses, layer.name, array)


def _slope(probe: _Probe, layer: Choosable, widths: tuple[int, ...], errors: NDArray[np.float64]) -> float:
    """Return the measured loss over the relative output error, at the width where both are clear."""
    clear = [i for i, error in enumerate(errors) if 0 < error <= CLEAR_ERROR]
    live = [i for i, error in enumerate(errors) if error > 0]
    if len(widths) < 2 or not live:
        return 0.0
    place = clear[0] if clear else live[-1]
    return min(probe(layer, widths[place]), HOPELESS) / float(errors[place])


def _check(
    probe: _Probe, layers: Sequence[Choosable], items: Sequence[Item], context: Context
) -> tuple[float | None, int]:
    """Measure some other pairs of layer and width, and return how well the predictions rank them."""
    pairs = [
        (number, bits)
        for number, item in enumerate(items)
        for bits in item.bits
        if bits in CHECK_WIDTHS and len(item.bits) > 1 and item.loss_at(bits) > 0
    ]
    if not pairs:
        return None, 0
    generator = np.random.default_rng(context.recipe.seed)
    drawn = sorted(generator.choice(len(pairs), size=min(CHECKS, len(pairs)), replace=False).tolist())
    measured = []
    for done, index in enumerate(drawn):
        number, bits = pairs[index]
        measured.append(probe(layers[number], bits))
        context.progress("checking predictions", done + 1, len(drawn))
    predicted = [items[pairs[i][0]].loss_at(pairs[i][1]) for i in drawn]
    return rank_correlation(np.asarray(predicted), np.asarray(measured)), len(drawn)
