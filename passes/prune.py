"""prune: weights that matter least become 0, in every layer as many as it bears, and the rest makes up for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from qcompiler.mixed_precision.divergence import Divergence
from qcompiler.protocols import PassKind, PassResult
from qcompiler.pruning.choice import best_way, chosen_search, ways_to_divide
from qcompiler.pruning.curves import measured_curves
from qcompiler.pruning.prunable import Prunable, check_methods, prunable
from qcompiler.pruning.walk import Removed, Walk
from qcompiler.quant.pruning import Pattern
from qcompiler.quant.sparsity import SparsitySearch
from qcompiler.records import Metric, PassReport, Table, TableRow
from qcompiler.samples import class_outputs
from qcompiler.sparsity import Sparsity
from qcompiler.state import Context, Fact, State

BY_EFFORT = {0: "magnitude", 1: "surgeon+alternating"}
"""Methods by effort, where none are named; more effort takes the last."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Sets weights of Conv, Gemm and MatMul to 0, the first and the last layer among them.

    How many in which layer follows from what zeros cost it (``qcompiler.pruning.curves``), which ones from the
    second moments of its inputs, and the codes of those that stay are found together with that
    (``qcompiler.pruning.walk``). Without ``--sparsity`` nothing is done.

    Attributes:
        methods: names in ``qcompiler.quant.pruning.METHODS`` joined by "+", of which every layer takes the best that
            it allows; "" takes those of the effort.
        limit: multiply-accumulates that a method may take on one layer.
    """

    name: ClassVar[str] = "prune"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    methods: str = ""
    limit: float = 1e12

    def __post_init__(self) -> None:
        check_methods(self.methods.split("+") if self.methods else ())

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with pruned weights.

        Raises:
            UsageError: the sparsity that is asked for cannot be met.
            DataError: the model does not run on a sample.
        """
        asked = context.recipe.sparsity
        methods = (self.methods or BY_EFFORT[min(context.recipe.effort, max(BY_EFFORT))]).split("+")
        nothing = PassReport(name=self.name, changed=False, options={"methods": "+".join(methods)})
        if asked is None or asked.share == 0.0:
            return PassResult(state, nothing)
        weights, skipped = prunable(state, context, methods, self.limit)
        if not weights:
            return PassResult(state, replace(nothing, skipped=skipped, notes=("no weight can be pruned",)))
        with threadpool_limits(context.recipe.threads):  # sums of other threads would round otherwise
            plans = _Plans(state, context, weights, self.name)
            search = state.sparsity_search
            if search is None:
                curves = measured_curves(state, weights, context, pattern_of(asked))
                way = best_way(ways_to_divide(curves, asked), asked, plans.judge())
                search = chosen_search(way, asked, context, lambda found: plans(found)[0])
            found, removed, _ = plans(search)
        report = replace(nothing, changed=bool(removed), skipped=skipped)
        return PassResult(replace(found, sparsity_search=search), _told(report, search, removed, asked))


def pattern_of(asked: Sparsity | None) -> Pattern | None:
    """Return the pattern that is asked for, None if zeros may be anywhere."""
    return Pattern(*asked.pattern) if asked is not None and asked.pattern is not None else None


class _Plans:
    """Prunes as a search says; what was pruned before with the same shares is not pruned again."""

    def __init__(self, state: State, context: Context, weights: Sequence[Prunable], by: str) -> None:
        self._state, self._context, self._weights, self._by = state, context, weights, by
        self._known: dict[tuple[tuple[str, float], ...], tuple[State, list[Removed], ir.Model]] = {}

    def __call__(self, search: SparsitySearch) -> tuple[State, list[Removed], ir.Model]:
        """Return the planned state, what was removed, and the float model with the pruned weights."""
        key = tuple(sorted(search.shares.items()))
        if key not in self._known:
            pattern = pattern_of(self._context.recipe.sparsity)
            walk = Walk(self._state, self._context, search.shares, pattern, self._by)
            removed, model = walk.run(self._weights)
            entries = [e for r in removed for e in (r.entry, *r.biases)]
            state = replace(self._state, plan=self._state.plan.with_tensors(*entries))
            self._known[key] = state, removed, model
        return self._known[key]

    def judge(self) -> Callable[[SparsitySearch], float] | None:
        """Return the loss on acceptance samples; None where there are none or no search is wanted."""
        held, state, recipe = self._context.acceptance, self._state, self._context.recipe
        if held is None or recipe.effort == 0:
            return None
        loss = Divergence(state.model, held, class_outputs(state.model, None), recipe.threads)
        return lambda search: loss(self(search)[2])


def _told(report: PassReport, search: SparsitySearch, removed: Sequence[Removed], asked: Sparsity) -> PassReport:
    """Return the report with how sparse every weight is, by which method, and what it costs."""
    losses = {c.name: float(c.loss(search.shares[c.name])) for c in search.curves}
    total = sum(c.weights for c in search.curves)
    sizes = {c.name: c.weights for c in search.curves}
    zeros = sum((r.entry.sparsity or 0.0) * sizes[r.entry.name] for r in removed)
    rows = tuple(
        TableRow(
            name=r.entry.name,
            values=(
                round(100 * (r.entry.sparsity or 0.0), 2),
                None if r.lost is None else round(100 * r.lost, 3),
                float(f"{losses[r.entry.name]:.4g}"),
            ),
            note=f"{r.method}: {r.note}" if r.note else r.method,
        )
        for r in removed
    )
    metrics = (
        Metric("sparsity", round(100 * zeros / max(total, 1), 2), "% of the weights"),
        Metric("pruned", len(removed), "weights"),
        Metric("predicted loss", float(f"{search.loss:.4g}"), ""),
        Metric("measured", search.trials, "runs"),
    )
    columns = ("zeros, %", "output lost, %", "predicted loss")
    tables = (Table("Sparsity by layer", "", columns, rows),) if rows else ()
    options = {**report.options, "sparsity": str(asked)}
    return replace(report, options=options, metrics=metrics, tables=tables, notes=(_divided(search),))


def _divided(search: SparsitySearch) -> str:
    """Return how zeros were divided over the layers, in words."""
    return "the same share in every layer" if search.uniform else f"divided by the {search.unit}"
