"""What a split of the network is judged by: time on this machine, or instructions on an emulated board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qcompiler.placement.cut import BoundaryCost
from qcompiler.records import Metric
from qcompiler.state import State


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What the nodes of a model cost, in the unit of the meter.

    Attributes:
        costs: (node name, "integer" or "float") -> cost; a node without an entry costs nothing there.
        boundary: what a value costs that crosses between the sides.
        fixed: what a run costs beside its nodes, however it is split.
        reused: nodes whose costs were known from an earlier run.
        metrics: what else the report says about the measurement.
    """

    costs: Mapping[tuple[str, str], float]
    boundary: BoundaryCost
    fixed: float = 0.0
    reused: int = 0
    metrics: tuple[Metric, ...] = ()


class Meter(Protocol):
    """Tells what nodes cost, so that a split can be found, and what a whole split costs, so that it can be judged."""

    @property
    def name(self) -> str:
        """Who decided, in the plan and in the report; ``repair.REASONS`` has the reason under this name."""

    @property
    def quantity(self) -> str:
        """What is measured, such as "latency"."""

    @property
    def unit(self) -> str:
        """The unit of every cost."""

    @property
    def min_win(self) -> float:
        """The share by which a split must be below the all-integer model: more than measurements repeat to."""

    @property
    def boundary_factors(self) -> tuple[float, ...]:
        """One candidate is cut for boundaries of each multiple; infinity forbids them: everything in float."""

    @property
    def aligns(self) -> bool:
        """True if convolutions that read their channels by fours are worth a try."""

    def measure(self, state: State, integer: Path, folder: Path) -> Measured:
        """Return the cost of every node on both sides.

        Args:
            state: a completely planned state; its model is the float side.
            integer: the same model, written with everything in integers that can be.
            folder: holds the sample to run; intermediate files go there.
        """

    def ratio(self, integer: Path, split: Path, folder: Path) -> tuple[float, float]:
        """Return the cost of a split over that of the all-integer model, and its own; infinity if it does not run."""
