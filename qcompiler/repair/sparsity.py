"""Repair of a pruned plan: fewer weights are 0 where a floor on accuracy is missed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcompiler.pruning.choice import at_sparsity
from qcompiler.quant.sparsity import SparsitySearch
from qcompiler.records import Verdict
from qcompiler.repair.bits import STEP, deficit_db, misses_accuracy
from qcompiler.state import Context, State

PRECISION = 1e-3
LITTLE = 0.01
"""Of the weights: a sparsity below this is not worth a try of its own, all weights stay."""


@dataclass(frozen=True, slots=True, eq=False)
class Denser:
    """Fewer zeros in the weights of a plan.

    Attributes:
        state: with another search for sparsities; its weights have to be pruned again.
        changed: names of the weights that keep more.
        before / after: share of zeros over all weights.
    """

    state: State
    changed: tuple[str, ...]
    before: float
    after: float


def less_sparse(state: State, verdict: Verdict, context: Context, tried: int) -> Denser | None:
    """Return the plan with fewer zeros after a missed floor on accuracy, None where that cannot help.

    The most zeros are taken whose predicted loss is clearly lower: 0.6 of it, and ever less at every further try, or
    less where decibels are missing. A size limit that the user gave, and a pattern, are never given up.

    Args:
        state: completely planned.
        verdict: what the gate found.
        context: of the compilation.
        tried: how often there were fewer zeros already.
    """
    search, asked = state.sparsity_search, context.recipe.sparsity
    if search is None or asked is None or asked.pattern is not None or not misses_accuracy(verdict):
        return None
    if context.recipe.floors.max_size_bytes is not None or not any(search.shares.values()):
        return None
    share = min(STEP ** (2**tried), 10 ** (-(deficit_db(verdict) + 0.5) / 10))
    found = _most_within(search, search.loss * share)
    if found.sparsity < LITTLE and not any(c.fixed for c in found.curves):
        found = at_sparsity(search, 0.0)
    changed = tuple(n for n, s in found.shares.items() if s < search.shares[n])
    if not changed:
        return None
    readers = [n for n in state.model.graph if any(v is not None and v.name in search.shares for v in n.inputs)]
    plan = state.plan.without_tensors(frozenset(f"{n.name}:bias" for n in readers))
    return Denser(replace(state, plan=plan, sparsity_search=found), changed, search.sparsity, found.sparsity)


def _most_within(search: SparsitySearch, loss: float) -> SparsitySearch:
    """Return the most zeros whose predicted loss is at most ``loss``; what is prescribed for single layers stays."""
    prescribed = sum(c.weights * min(c.fixed, c.highest) for c in search.curves if c.fixed is not None)
    low = prescribed / max(sum(c.weights for c in search.curves), 1)
    high = search.sparsity
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if at_sparsity(search, middle).loss <= loss else (low, middle)
    return at_sparsity(search, low)
