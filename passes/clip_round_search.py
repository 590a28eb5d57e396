"""clip-round-search: clip ratios, rounding and biases, layer by layer, by the loss of the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from qcompiler.protocols import PassResult
from qcompiler.records import Metric, Table, TableRow
from qcompiler.search.timed import TimedSearch
from qcompiler.state import Context, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.search.bench import Clock
    from qcompiler.search.clip_round import ClipRoundResult


@dataclass(frozen=True, slots=True)
class ClipRoundSearch(TimedSearch):
    """Searches, for one layer after the other on top of those before it, what the loss of the network says is best.

    For a weight: a factor of its scales, with its codes kept or rounded anew, and a border of the rounding that
    moves with the magnitude. For the layer's output: the ends of its range, and below 8 bits an offset of its
    rounding, which the layer's bias holds exactly. Then the bias takes back the shift of the output's mean that is
    left, measured on the quantized input. The loss is the distance from the float model (see ``DistillationLoss``)
    on calibration samples; a candidate must lower it by 0.01 %, and be better on every fourth sample, which is kept
    back from the search. What is decided stays as it is for all layers behind.

    Attributes:
        seconds: for the search; 0 takes 40 s at -O2, 120 s at -O3, and half of what is left under --max-time.

    Source: after Kim et al. 2021, Q-Rater: Non-Convex Optimization for Post-Training Uniform Quantization
    (arXiv:2105.01868). The principle is theirs: clipping and rounding of weights and activations by the task loss,
    layer by layer on a frozen prefix. Parametrization, grids and acceptance are reconstructions, for only the
    abstract was at hand.
    """

    name: ClassVar[str] = "clip-round-search"
    by_effort: ClassVar[Mapping[int, float]] = MappingProxyType({2: 40.0, 3: 120.0})

    def searched(self, state: State, context: Context, setup: SearchSetup, clock: Clock) -> PassResult:
        """Return the state with what was found, or as it was where nothing was better."""
        from qcompiler.search.clip_round import Progress, search_clip_and_rounding

        def tell(done: int, total: int) -> None:
            context.progress("searching clips and rounding", done, total)

        found = search_clip_and_rounding(setup, state, Progress(clock, context.checkpoint, tell))
        report = replace(
            self.report("" if found.complete else "the time was over before the last layer"),
            changed=found.after != found.before,
            options={"seconds": self.seconds, "grid": found.pace.grid.name, "rows": found.pace.rows},
            metrics=_metrics(found),
            tables=(_table(found),) if found.units else (),
        )
        return PassResult(replace(state, plan=found.plan) if report.changed else state, report)


def _metrics(found: ClipRoundResult) -> tuple[Metric, ...]:
    return (
        Metric("candidates", found.tried, ""),
        Metric("taken", sum(u.taken for u in found.units), "candidates"),
        Metric("not confirmed", found.refused, "candidates"),
        Metric("rows per candidate", found.pace.rows, "samples"),
        Metric("loss where it searched, before", found.before[0], ""),
        Metric("loss where it searched, after", found.after[0], ""),
        Metric("loss where it confirmed, before", found.before[1], ""),
        Metric("loss where it confirmed, after", found.after[1], ""),
    )


def _table(found: ClipRoundResult) -> Table:
    rows = [TableRow(u.name, (u.before, u.after), f"{u.taken} taken") for u in found.units]
    return Table("Distance from the float model around every layer", "", ("before", "after"), tuple(rows))
