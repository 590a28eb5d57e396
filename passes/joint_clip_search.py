"""joint-clip-search: the clips of all activations and weights at once, by the loss of the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from qcompiler.protocols import PassResult
from qcompiler.records import Metric
from qcompiler.search.timed import TimedSearch
from qcompiler.state import Context, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.search.bench import Clock
    from qcompiler.search.joint import JointResult


@dataclass(frozen=True, slots=True)
class JointClipSearch(TimedSearch):
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
    by_effort: ClassVar[Mapping[int, float]] = MappingProxyType({2: 15.0, 3: 60.0})

    def searched(self, state: State, context: Context, setup: SearchSetup, clock: Clock) -> PassResult:
        """Return the state with what was found, or as it was where nothing was better."""
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
            self.report(note),
            changed=not note,
            options={"seconds": self.seconds, "rows": found.rows, "start": found.start},
            metrics=(
                *_metrics(found),
                Metric("gain on acceptance samples", gain, ""),
                Metric("standard error of that gain", error, ""),
            ),
        )
        return PassResult(replace(state, plan=found.plan) if report.changed else state, report)


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
