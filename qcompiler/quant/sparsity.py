"""Sparsity allocation: how many weights of which layer become 0, from the error that each of its shares costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Shares of zeros at which a layer's error is computed; between them its logarithm is taken as linear."""
STEPS = 200
"""Points of the curve from which the convex hull is taken."""
TINY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What zeros cost one weight.

    Attributes:
        name: of the weight.
        weights: how many numbers it holds.
        bits: of one code.
        errors: share of the output's variance that is lost at each of ``SHARES``; rising from 0.
        slope: predicted rise of the network's loss by that error: measured, or 1.
        method: what found the errors.
        fixed: the sparsity that is prescribed, or None.
    """

    name: str
    weights: int
    bits: int
    errors: tuple[float, ...]
    slope: float = 1.0
    method: str = ""
    fixed: float | None = None

    def loss(self, share: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the predicted rise of the network's loss at shares of zeros, float64 of the same shape."""
        known = np.log(np.maximum(np.asarray(self.errors[1:]), TINY))
        found = np.exp(np.interp(share, SHARES[1:], known))
        near = np.asarray(share) / SHARES[1]  # below the first point the error falls to 0 with the share
        return np.asarray(self.slope * found * np.minimum(near, 1.0), np.float64)

    def steps(self) -> list[tuple[float, float, float]]:
        """Return the convex hull of the loss as (loss a weight, share before, share behind), both rising."""
        shares = np.linspace(0.0, self.highest, STEPS + 1)
        losses, at, found = self.loss(shares), 0 if self.highest > 0 else STEPS, []
        while at < STEPS:
            rates = (losses[at + 1 :] - losses[at]) / (shares[at + 1 :] - shares[at])
            best = at + 1 + int(np.flatnonzero(rates <= rates.min())[-1])
            rate = float(rates.min()) / max(self.weights, 1)
            found.append((rate, float(shares[at]), float(shares[best])))
            at = best
        return found

    @property
    def highest(self) -> float:
        """The largest share of zeros with which a weight is left."""
        return 1.0 - 1.0 / self.weights if self.weights > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsitySearch:
    """Everything one search for sparsities found out, so that another can be taken without a new one.

    Attributes:
        curves: of all weights that may be pruned.
        shares: weight -> share of zeros that is planned.
        uniform: every layer has the same.
        unit: what the loss is.
        trials: runs that were measured.
    """

    curves: tuple[Curve, ...]
    shares: Mapping[str, float]
    uniform: bool = False
    unit: str = ""
    trials: int = 0

    @property
    def sparsity(self) -> float:
        """The planned share of zeros over all weights."""
        total = sum(c.weights for c in self.curves)
        return sum(c.weights * self.shares[c.name] for c in self.curves) / max(total, 1)

    @property
    def loss(self) -> float:
        """The predicted rise of the network's loss."""
        return float(sum(float(c.loss(self.shares[c.name])) for c in self.curves))


def allocated(curves: Sequence[Curve], sparsity: float, *, uniform: bool = False) -> dict[str, float]:
    """Return the share of zeros of every weight with the least predicted loss at a sparsity over all of them.

    Zeros go, one stretch of a layer's convex hull after the other, where one more costs least; that is exact for
    convex curves, up to the last stretch, which is taken in part.

    Args:
        curves: at least one.
        sparsity: over all weights, from 0 to below 1.
        uniform: give every layer the same instead; what is fixed stays.

    Raises:
        UsageError: what is prescribed leaves too few weights to choose from.

    Source: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers" (1988), section II.
    """
    left = sparsity * sum(c.weights for c in curves)
    fixed = {c.name: min(c.fixed, c.highest) for c in curves if c.fixed is not None}
    left -= sum(c.weights * fixed[c.name] for c in curves if c.name in fixed)
    free = [c for c in curves if c.name not in fixed]
    room = sum(c.weights * c.highest for c in free)
    if left > room * (1 + TINY) or left < -TINY * sum(c.weights for c in curves):
        total = sum(c.weights for c in curves)
        low, high = (total * sparsity - left) / total, (total * sparsity - left + room) / total
        raise UsageError(
            f"a sparsity of {sparsity:.4g} cannot be met: what [match] and single weights leave allows {low:.4g} to "
            f"{high:.4g}; ask for that, or loosen the sparsity of a [match]"
        )
    if uniform:
        share = left / max(sum(c.weights for c in free), 1)
        return {**fixed, **{c.name: min(share, c.highest) for c in free}}
    shares = {c.name: 0.0 for c in free}
    stretches = sorted((rate, c.name, low, high, c.weights) for c in free for rate, low, high in c.steps())
    for _, name, low, high, weights in stretches:
        if left <= 0:
            break
        taken = min(left, (high - low) * weights)
        shares[name] = low + taken / weights
        left -= taken
    return {**fixed, **shares}
