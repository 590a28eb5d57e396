"""What the passes that search by loss have in common: when there is something to do, for how long, and on what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from qcompiler.errors import UsageError
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import PassReport, Skip
from qcompiler.search.units import few_bits, is_named
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    from qcompiler.executor.setup import SearchSetup
    from qcompiler.search.bench import Clock

SHARE = 0.5
"""Part of the time that is left under a limit."""


@dataclass(frozen=True, slots=True)
class TimedSearch(ABC):
    """A pass that searches by the loss of the network for a while; PyTorch is imported only if there is work.

    Attributes:
        by_effort: seconds at each effort from 2 on, where neither ``seconds`` nor a limit was asked for.
        seconds: for the search; 0 takes what the effort gives, or half of what is left under --max-time.
    """

    name: ClassVar[str]
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    improving: ClassVar[bool] = True
    by_effort: ClassVar[Mapping[int, float]]
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise UsageError(f"{self.name}: seconds is {self.seconds}; it must not be negative")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with what was found, or as it was where nothing was better.

        Raises:
            RuntimeUnavailable: PyTorch is not installed.
        """
        if context.budget.spent():
            return PassResult(state, self.report("there is no time left for a search"))
        if not few_bits(state) and not is_named(self.name, context):
            return PassResult(state, self.report("nothing has fewer than 8 bits"))
        from qcompiler.executor.determinism import deterministic
        from qcompiler.executor.setup import prepare_search
        from qcompiler.search.bench import Clock

        clock = Clock(context.budget, self._limit(context))
        with deterministic(context.recipe.threads):
            setup = prepare_search(state, context)
            if isinstance(setup, str):
                skip = Skip("the model", setup)
                return PassResult(state, replace(self.report(setup), skipped=(skip,)))
            return self.searched(state, context, setup, clock)

    @abstractmethod
    def searched(self, state: State, context: Context, setup: SearchSetup, clock: Clock) -> PassResult:
        """Return the result of a search that may go on until the clock says that it is over."""

    def report(self, note: str) -> PassReport:
        """Return a report that says that nothing was changed, and why if there is a note."""
        return PassReport(
            name=self.name, changed=False, options={"seconds": self.seconds}, notes=(note,) if note else ()
        )

    def _limit(self, context: Context) -> float:
        if self.seconds:
            return self.seconds
        left = context.budget.left_s()
        return SHARE * left if left < float("inf") else self.by_effort.get(context.recipe.effort, self.by_effort[2])
