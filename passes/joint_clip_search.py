"""joint-clip-search: the clips of all activations and weights at once, by the loss of the whole network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qcompiler.errors import UsageError
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.search.bench import Clock
    from qcompiler.search.joint import JointResult

SECONDS = {2: 15.0, 3: 60.0}
"""Time of a search by effort, where no limit was asked for."""
SHARE = 0.5
"""Part of the time that is left under a limit."""


@dataclass(frozen=True, slots=True)
class JointClipSearch:
    """Searches the clips of all activations, and of the weights below 8 bits, together.

    The start is the best of: the present clips; for ten values of p between 2 and 4, the clips with the least error
    of every tensor in the Lp norm; and the p that a parabola through their losses says is best. From there Powell's
    method moves all clips together first, then one by one. Zero points stay integers, codes that a solver chose
    stay, and what is found is taken only if it is better on every fourth calibration sample, which is kept back, and
    by more than the standard error on acceptance samples: many clips fit themselves to few rows.

    Attributes:
        seconds: for the search; 0 takes 15 s at -O2, 60 s at -O3, and half of what is left under --max-time.

    Source: Nahshan et al. 2021, Loss Aware Post-training Quantization (arXiv:1911.07190). Differs: the loss is the
    distance from the float model; see ``qcompiler.search.joint`` for the rest.
    """

    name: ClassVar[str] = "joint-clip-search"
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
        from qcompiler.executor.binding import binding_of
        from qcompiler.executor.gain import held_out_gain
        from qcompiler.search.joint import search_jointly

        def tell(done: int, total: int) -> None:
            context.progress("searching clips jointly", min(done, total), total)

        found = search_jointly(setup, state, clock, tell)
        note = "" if found.taken else "nothing better was found that holds on other samples"
        gain = error = 0.0
        if found.taken:
            plans = (state, replace(state, plan=found.plan))
            gain, error = held_out_gain(setup, *(binding_of(s, setup.executor) for s in plans))
            note = "" if gain > error else "what was gained on acceptance samples is within its standard error"
        report = replace(
            self._report(note),
            changed=not note,
            options={"seconds": self.seconds, "rows": found.rows, "start": found.start},
            metrics=(
                *_metrics(found),
                Metric("gain on acceptance samples", gain, ""),
                Metric("standard error of that gain", error, ""),
            ),
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


def _metrics(found: JointResult) -> tuple[Metric, ...]:
    return (
        Metric("candidates", found.tried, ""),
        Metric("not confirmed", found.refused, "points"),
        Metric("clips searched", found.clips[0], f"of {found.clips[1]}"),
        Metric("rows per candidate", found.rows, "samples"),
        Metric("loss where it searched, before", found.level[0], ""),
        Metric("loss where it searched, at the start", found.level[1], ""),
        Metric("loss where it searched, after", found.level[2], ""),
        Metric("loss where it confirmed, before", found.confirmed[0], ""),
        Metric("loss where it confirmed, after", found.confirmed[1], ""),
    )
