"""Bytes of embedding tables against bytes of layers: what the tables of a file lose at every size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.mixed_precision.divergence import HOPELESS, Divergence
from qcompiler.mixed_precision.sensitivity import few_samples
from qcompiler.model.edit import clone, replace_constant
from qcompiler.plan import CompressionPlan
from qcompiler.row_search import RowSearch
from qcompiler.samples import class_outputs
from qcompiler.state import Context, State

SIZES = 24
"""Sizes of all tables together that are compared."""
CLEAR_SHARE = 0.1
"""Share of the rows' power: up to it the loss of a network is taken as proportional to it."""


@dataclass(frozen=True, slots=True, eq=False)
class TableTrade:
    """Tables whose bytes can be exchanged for those of layers.

    Attributes:
        searches: the tables.
        slopes: what the loss of the network rises by, over the share of a table's weighted power that is lost.
        planned_bytes: what the tables take in the plan, decoding included.
    """

    searches: tuple[RowSearch, ...]
    slopes: tuple[float, ...]
    planned_bytes: int

    def sizes(self) -> tuple[int, ...]:
        """Return the sizes to compare, in bytes of all tables together, rising."""
        low, high = (sum(getattr(s, end) for s in self.searches) for end in ("smallest", "largest"))
        return tuple(int(size) for size in np.linspace(low, high, SIZES))

    def loss(self, size: int) -> float:
        """Return the predicted rise of the loss with tables of that size."""
        budgets = self._budgets(size)
        return sum(k * s.lost(s.within(budgets[s.name]).bits) for s, k in zip(self.searches, self.slopes, strict=True))

    def planned(self, plan: CompressionPlan, size: int, by: str) -> CompressionPlan:
        """Return a plan whose tables have that size."""
        budgets, entries = self._budgets(size), []
        for search in self.searches:
            bits, entry = search.within(budgets[search.name]).bits, plan.tensors[search.name]
            codes, deciders = search.found.codes(bits), (*entry.decided_by, by)
            entries.append(replace(entry, rows=codes, reason=search.describe(bits), decided_by=deciders))
        return plan.with_tensors(*entries)

    def _budgets(self, size: int) -> Mapping[str, int]:
        """Return the bytes of every table: all go the same share of the way from their smallest to their largest."""
        low, high = (sum(getattr(s, end) for s in self.searches) for end in ("smallest", "largest"))
        share = (size - low) / (high - low) if high > low else 0.0
        return {s.name: s.smallest + int(share * (s.largest - s.smallest)) for s in self.searches}


def table_trade(state: State, context: Context) -> TableTrade | None:
    """Return the tables of a state that may be traded, with their slopes; None without such tables or without data.

    A slope is measured by one run of the float model with all rows of that table at one width, so that rows which the
    samples read lose as much as those that they do not.

    Args:
        state: whose tables are planned.
        context: its calibration samples are run.
    """
    searches = state.row_searches
    if not searches or context.calibration is None:
        return None
    few = few_samples(context.calibration, state.model, len(searches))
    loss = Divergence(state.model, few, class_outputs(state.model, None), context.recipe.threads)
    slopes, planned = [], 0
    for search in searches:
        codes = state.plan.tensors[search.name].rows
        planned += codes.stored_bytes + search.operator_bytes if codes is not None else 0
        bits = _clear_width(search)
        lost, changed = search.lost(bits), _with_rows(state.model, search.name, search.found.codes(bits).decode())
        slopes.append(min(loss(changed), HOPELESS) / lost if lost > 0 else 0.0)
    return TableTrade(searches, tuple(slopes), planned)


def _clear_width(search: RowSearch) -> NDArray[np.uint8]:
    """Return equal bits for all rows: the fewest that lose little, so that the loss is in proportion, else the most."""
    rows, widths = search.found.losses.shape
    choices = [np.full(rows, search.found.first + number, np.uint8) for number in range(widths)]
    return next((bits for bits in choices if search.lost(bits) <= CLEAR_SHARE), choices[-1])


def _with_rows(model: ir.Model, name: str, rows: NDArray[np.float32]) -> ir.Model:
    changed = clone(model)
    replace_constant(changed.graph.initializers[name], rows)
    return changed
