"""What zeros cost every layer: the error of its output at rising shares, and how much the network suffers from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.layer_problems import gram_matrices
from qcompiler.mixed_precision.changed import with_weight
from qcompiler.mixed_precision.divergence import HOPELESS, Divergence
from qcompiler.mixed_precision.sensitivity import CLEAR_ERROR, few_samples
from qcompiler.pruning.prunable import Prunable
from qcompiler.quant.gram import Float64, damped
from qcompiler.quant.pruning import Choice, Mask, Pattern, Pruned, by_alternating, by_magnitude, by_surgeon, error_of
from qcompiler.quant.sparsity import SHARES, Curve
from qcompiler.runtime.grams import BATCH_BYTES, GramOptions
from qcompiler.samples import class_outputs
from qcompiler.state import Context, State

ROWS = 64
"""Rows, evenly spread, that tell the error of a layer."""
MOST = 64
"""Samples of one measured run at most; the work that all may take is that of ``few_samples``."""
ROUNDS = 30
"""Of the alternating method on a curve: the ranks of its errors are clear long before the mask stands still."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The curves of all weights, and how they were found.

    Attributes:
        ways: unit of the loss -> curves in graph order; they differ in their slopes.
        trials: runs that were measured.
        samples: of each run.
    """

    ways: Mapping[str, tuple[Curve, ...]]
    trials: int = 0
    samples: int = 0


def measured_curves(state: State, weights: Sequence[Prunable], context: Context, pattern: Pattern | None) -> Curves:
    """Return what zeros cost every weight.

    The error of the layer's output is computed at each of ``SHARES``; one run of the float model with that layer
    alone pruned, at the share nearest to an error of 5 %, tells how much the network's loss rises with it. The loss
    is the squared error of all outputs and, in a second way, the divergence of class probabilities: a network that is
    sure of its calibration samples keeps its probabilities there while its scores fall apart, but small errors of
    many scores change few answers.

    Args:
        state: a state with scaled weights.
        weights: at least one.
        context: its calibration samples are run; without any, layers are compared by their own error.
        pattern: where zeros may be.
    """
    losses, few = [], 0
    if context.calibration is not None:
        samples = few_samples(context.calibration, state.model, len(weights), MOST)
        few, classes = len(samples), class_outputs(state.model, None)
        known = dict.fromkeys([frozenset[str](), classes])
        losses = [Divergence(state.model, samples, scored, context.recipe.threads) for scored in known]
    done: list[tuple[Curve, ...]] = []
    for weight, gram in _with_grams(state, weights, context):
        curve, share = _curve(weight, gram, pattern)
        slopes = _slopes(state, weight, gram, share, losses)
        done.append(tuple(replace(curve, slope=slope) for slope in slopes) or (curve,))
        context.progress("measuring layers", len(done), len(weights))
    units = [loss.unit for loss in losses] or ["sum over the layers of their outputs' relative error"]
    ways = {unit: tuple(own[number] for own in done) for number, unit in enumerate(units)}
    return Curves(ways, len(done) * len(losses), few)


def _with_grams(
    state: State, weights: Sequence[Prunable], context: Context
) -> Iterator[tuple[Prunable, Float64 | None]]:
    """Yield every weight with H, None where its method needs none; as many at a time are in memory as fit."""
    batch: list[Prunable] = []
    used = 0
    for number, weight in enumerate(weights):
        layout = weight.weight.layout
        used += layout.bytes if weight.second_order and layout is not None else 0
        batch.append(weight)
        if used < BATCH_BYTES and number + 1 < len(weights):
            continue
        wanted = [w.weight for w in batch if w.second_order]
        found: Mapping[str, Float64] = {}
        if wanted and context.calibration is not None:
            options = GramOptions(threads=context.recipe.threads, seed=context.recipe.seed)
            found = gram_matrices(state, wanted, context.calibration, options)
        yield from ((w, found.get(w.name)) for w in batch)
        batch, used = [], 0


def _curve(weight: Prunable, gram: Float64 | None, pattern: Pattern | None) -> tuple[Curve, float]:
    """Return the curve of a weight with slope 1, and the share at which the network is to be measured."""
    rows = weight.weight.rows()
    step = max(1, rows.shape[1] // ROWS)
    part = rows[:, ::step]
    matrix = None if gram is None else damped(gram)
    power = lost(part, np.zeros_like(part), matrix)
    errors, start = [0.0], None
    for share in SHARES[1:-1]:
        pruned = thinned(weight, part, matrix, choice_of(weight, part.size, share, pattern), start)
        errors.append(lost(part, pruned.weight, matrix) / power if power > 0 else 0.0)
        start = pruned.mask
    rising = np.maximum.accumulate(np.minimum([*errors, 1.0], 1.0))
    if power <= 0:
        rising = np.zeros(len(SHARES))
    clear = [s for s, e in zip(SHARES[1:-1], rising[1:-1], strict=True) if e <= CLEAR_ERROR]
    curve = Curve(
        name=weight.name,
        weights=weight.weight.array.size,
        bits=weight.weight.num_bits,
        errors=tuple(float(e) for e in rising),
        method=weight.method,
        fixed=weight.fixed,
    )
    return curve, clear[-1] if clear else SHARES[1]


def _slopes(
    state: State, weight: Prunable, gram: Float64 | None, share: float, losses: Sequence[Divergence]
) -> list[float]:
    """Return the measured losses of the network over the error of the layer's output."""
    rows = weight.weight.rows()
    matrix = None if gram is None else damped(gram)
    pruned = thinned(weight, rows, matrix, choice_of(weight, rows.size, share, None)).weight
    power = lost(rows, np.zeros_like(rows), matrix)
    error = lost(rows, pruned, matrix)
    if power <= 0 or error <= 0:
        return [0.0 for _ in losses]
    model = with_weight(state, weight.nodes, weight.name, weight.weight.shaped(pruned))
    return [min(loss(model), HOPELESS) * power / error for loss in losses]


def lost(rows: Float64, pruned: Float64, gram: Float64 | None) -> float:
    """Return the mean squared error of the layer's output; without H inputs count as uncorrelated and all alike."""
    return float(np.square(pruned - rows).sum()) if gram is None else error_of(rows, pruned, gram)


def choice_of(weight: Prunable, size: int, share: float, pattern: Pattern | None) -> Choice:
    """Return how many of ``size`` weights go; at least one stays."""
    layout = weight.weight.layout
    return Choice(min(round(share * size), size - 1), pattern, layout.kernel if layout is not None else 1)


def thinned(weight: Prunable, rows: Float64, gram: Float64 | None, choice: Choice, start: Mask | None = None) -> Pruned:
    """Return rows pruned by the weight's method, with fewer rounds than the final ones get."""
    if weight.method == "magnitude" or gram is None:
        return by_magnitude(rows, choice)
    if weight.method == "surgeon":
        return by_surgeon(rows, gram, choice)
    return by_alternating(rows, gram, choice, ROUNDS, start)
