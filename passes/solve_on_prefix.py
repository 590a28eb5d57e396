"""solve-on-prefix: codes of every layer once more, for the inputs that the compressed layers before it make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qcompiler.errors import UsageError
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.grid import power_ratio_db
from qcompiler.quant.solvers import SOLVERS
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.training.prefix import PrefixWalk


@dataclass(frozen=True, slots=True)
class SolveOnPrefix:
    """Solves the codes of one layer after the other again, so that each makes good what those before it spoil.

    A layer reads what the compressed layers before it make, and is to make of that what the float layer makes of
    float inputs: a linear problem, whose float solution is rounded by the solvers of ``solve-codes`` on the levels
    that are planned. Biases take back the mean that is left. Held-out calibration rows decide on every layer, and
    the whole is kept only if the distance on acceptance samples has shrunk.

    Attributes:
        solvers: names joined by "+".
        shares: how far the float solution is drawn towards the float weights, several joined by "+"; a layer takes
            the best. See ``qcompiler.quant.solvers.drift.DriftMoments.target``.
    """

    name: ClassVar[str] = "solve-on-prefix"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    improving: ClassVar[bool] = True
    solvers: str = "gptq+descent"
    shares: str = "0.03+0.3"

    def __post_init__(self) -> None:
        for name in self.solvers.split("+"):
            if name not in SOLVERS:
                raise UsageError(f"{self.name}: solvers {name!r} is none of {', '.join(SOLVERS)}")
        try:
            good = all(share > 0 for share in self._shares())
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"{self.name}: shares {self.shares!r} are not positive numbers joined by '+'")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with solved codes, or as it was where that does not help."""
        from threadpoolctl import threadpool_limits

        from qcompiler.executor.determinism import deterministic
        from qcompiler.executor.setup import low_bit_weights, prepare_search

        if not low_bit_weights(state):
            return PassResult(state, self._report("no weight has fewer than 8 bits"))
        with deterministic(context.recipe.threads), threadpool_limits(context.recipe.threads):
            setup = prepare_search(state, context)
            if not isinstance(setup, str) and setup.axes is None:
                setup = "its samples cannot share a run, which solving behind compressed layers needs"
            if isinstance(setup, str):
                return PassResult(state, replace(self._report(setup), skipped=(Skip("the model", setup),)))
            return self._solved(state, context, setup)

    def _solved(self, state: State, context: Context, setup: SearchSetup) -> PassResult:
        from qcompiler.executor.binding import binding_of
        from qcompiler.training.measure import held_out_distance
        from qcompiler.training.prefix import PrefixWalk

        walk = PrefixWalk(setup, context, self.name, self.solvers.split("+"), self._shares())
        found = walk.run(state)
        before, after = (held_out_distance(setup, binding_of(s, setup.executor)) for s in (state, found))
        report = replace(
            self._report("; ".join(walk.notes)),
            metrics=(
                Metric("distance on acceptance samples before", before, ""),
                Metric("distance on acceptance samples after", after, ""),
                Metric("solved again", sum(r.changed for r in walk.records), f"of {len(walk.records)} weights"),
            ),
            tables=_tables(walk),
        )
        if not after < before:
            note = "solving again did not help on samples that it has not seen"
            return PassResult(state, replace(report, notes=(*report.notes, note)))
        return PassResult(found, replace(report, changed=True))

    def _shares(self) -> tuple[float, ...]:
        return tuple(float(share) for share in self.shares.split("+"))

    def _report(self, note: str) -> PassReport:
        options = {"solvers": self.solvers, "shares": self.shares}
        return PassReport(name=self.name, changed=False, options=dict(options), notes=(note,) if note else ())


def _tables(walk: PrefixWalk) -> tuple[Table, ...]:
    rows = tuple(
        TableRow(r.weight, (power_ratio_db(1.0, r.before), power_ratio_db(1.0, r.after)), r.winner)
        for r in walk.records
    )
    title = "SQNR of each layer's output on held-out rows, its inputs compressed"
    return (Table(title, "dB", ("before", "after"), rows),) if rows else ()
