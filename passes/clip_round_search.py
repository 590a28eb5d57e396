"""clip-round-search: clip ratios, rounding and biases, layer by layer, by the loss of the whole network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qcompiler.errors import UsageError
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.search.bench import Clock
    from qcompiler.search.clip_round import ClipRoundResult

SECONDS = {2: 40.0, 3: 120.0}
"""Time of a search by effort, where no limit was asked for."""
SHARE = 0.5
"""Part of the time that is left under a limit."""


@dataclass(frozen=True, slots=True)
class ClipRoundSearch:
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
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    improving: ClassVar[bool] = True
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise UsageError(f"{self.name}: seconds is {self.seconds}; it must not be negative")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with what was found, or as it was where nothing was better.

        Raises:
            RuntimeUnavailable: PyTorch is not installed.
        """
        from qcompiler.search.units import few_bits, is_named

        if context.budget.spent():
            return PassResult(state, self._report("there is no time left for a search"))
        if not few_bits(state) and not is_named(self.name, context):
            return PassResult(state, self._report("nothing has fewer than 8 bits"))
        from qcompiler.executor.determinism import deterministic
        from qcompiler.executor.setup import prepare_search
        from qcompiler.search.bench import Clock

        clock = Clock(context.budget, self._limit(context))
        with deterministic(context.recipe.threads):
            setup = prepare_search(state, context)
            if isinstance(setup, str):
                skip = Skip("the model", setup)
                return PassResult(state, replace(self._report(setup), skipped=(skip,)))
            return self._searched(state, context, setup, clock)

    def _searched(self, state: State, context: Context, setup: SearchSetup, clock: Clock) -> PassResult:
        from qcompiler.search.clip_round import Progress, search_clip_and_rounding

        def tell(done: int, total: int) -> None:
            context.progress("searching clips and rounding", done, total)

        found = search_clip_and_rounding(setup, state, Progress(clock, context.checkpoint, tell))
        report = replace(
            self._report("" if found.complete else "the time was over before the last layer"),
            changed=found.after != found.before,
            options={"seconds": self.seconds, "grid": found.pace.grid.name, "rows": found.pace.rows},
            metrics=_metrics(found),
            tables=(_table(found),) if found.units else (),
        )
        return PassResult(replace(state, plan=found.plan) if report.changed else state, report)

    def _limit(self, context: Context) -> float:
        if self.seconds:
            return self.seconds
        left = context.budget.left_s()
        return SHARE * left if left < float("inf") else SECONDS.get(context.recipe.effort, SECONDS[2])

    def _report(self, note: str) -> PassReport:
        options = {"seconds": self.seconds}
        return PassReport(name=self.name, changed=False, options=options, notes=(note,) if note else ())


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
