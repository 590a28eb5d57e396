"""The joint search of clips: a start from Lp norms, then Powell's method over all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from qcompiler.executor.binding import binding_of
from qcompiler.executor.setup import SearchSetup
from qcompiler.plan import CompressionPlan, TensorPlan
from qcompiler.search.bench import MIN_GAIN, Bench, Clock, Entries
from qcompiler.search.lp_start import NORMS, best_factors, best_ranges, between, float_values, stationary_norm
from qcompiler.search.moves import GroupMoves, WeightMoves, group_moves
from qcompiler.search.pace import step_seconds
from qcompiler.search.units import searched_units
from qcompiler.state import State

NAME = "joint-clip-search"
BOUND = float(np.log(1.6))
"""Clips move between 1 / 1.6 and 1.6 times their start, in either round."""
TOLERANCE = 0.02
"""Relative change of a clip at which a line search ends."""
LINE = 10
"""Evaluations of one line search, about."""
ROUNDS = 2
STATIONS = 8
"""Points on the way of a search that are tried on the rows that were kept back, the last one first."""
ROWS = (256, 128, 64, 32, 16)

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class JointResult:
    """The plan that was found, and how.

    Attributes:
        start: what the search began with, in words.
        norms: loss with the clips of every p.
        level: loss (before, at the start, at the end) on the rows that were searched on.
        confirmed: loss (before, at the end) on the rows that were kept back.
        clips: how many were searched, of how many.
        tried / refused: candidates that were measured; points of the way that did not hold on the rows kept back.
        taken: the result was better on the rows that were kept back.
    """

    plan: CompressionPlan
    start: str
    norms: tuple[float, ...]
    level: tuple[float, float, float]
    confirmed: tuple[float, float]
    tried: int
    refused: int
    rows: int
    clips: tuple[int, int]
    taken: bool


class _Spent(Exception):
    """The time is over in the middle of a search by somebody else's code."""


@dataclass(frozen=True, slots=True, eq=False)
class _Clip:
    """One coordinate: a tensor whose clip moves."""

    bits: int
    at: Callable[[float], Entries]


def search_jointly(setup: SearchSetup, state: State, clock: Clock, tell: Callable[[int, int], None]) -> JointResult:
    """Search all clips together and return what was found; the plan as it was if nothing is better.

    Args:
        setup: executor and samples.
        state: where to start.
        clock: ends the search.
        tell: told how many evaluations are done, of how many.

    Source: Nahshan et al. 2021, Loss Aware Post-training Quantization (arXiv:1911.07190), the whole procedure.
    Differs: grids have integer zero points and one scale per weight channel, moved by one factor; the present clips
    may be the start; codes that a solver chose are kept, only their scales move; what is found must hold on rows
    that were not searched on.
    """
    return _Joint(setup, state, clock, tell).run()


class _Joint:
    def __init__(self, setup: SearchSetup, state: State, clock: Clock, tell: Callable[[int, int], None]) -> None:
        self._setup, self._state, self._clock, self._tell = setup, state, clock, tell
        forward = sum(step_seconds(setup, binding_of(state, setup.executor)))
        units = searched_units(state, setup.executor)
        coordinates = 2 + sum((u.weight is not None) + bool(u.group) for u in units)
        wanted = len(NORMS) + 2 + LINE * coordinates
        fitting = [r for r in ROWS if r * forward * wanted <= clock.left_s()]
        self._bench = Bench(setup, state, fitting[0] if fitting else ROWS[-1])
        each = forward * self._bench.rows
        self._evaluations = int(min(clock.left_s() / max(each, 1e-9), ROUNDS * wanted))
        self._weights = [(u, WeightMoves(u.weight, state, NAME)) for u in units if u.weight is not None]
        self._groups = [(u, group_moves(state.model, state.plan, u.group, NAME)) for u in units if u.group]

    def run(self) -> JointResult:
        bench = self._bench
        before = bench.level, bench.confirmed
        norms, start, name, level = self._start()
        trail, clips = self._powell(start, level)
        taken = self._take_last_that_holds(trail)
        return JointResult(
            plan=bench.plan,
            start=name,
            norms=norms,
            level=(before[0], level, bench.level),
            confirmed=(before[1], bench.confirmed),
            tried=bench.tried,
            refused=bench.refused,
            rows=bench.rows,
            clips=clips,
            taken=taken,
        )

    def _take_last_that_holds(self, trail: Sequence[tuple[Entries, float]]) -> bool:
        """Take the latest of the ever better points that is also better on the rows that were kept back.

        A search of many clips on few rows goes too far in the end; what it found on the way may hold.
        """
        if not trail:
            return False
        chosen = np.unique(np.linspace(0, len(trail) - 1, min(STATIONS, len(trail))).astype(np.int64))
        return any(self._bench.take(0, *trail[i]) for i in reversed(chosen))

    def _loss(self, entries: Entries) -> float:
        if self._clock.over():
            raise _Spent
        self._tell(self._bench.tried, self._evaluations)
        return float(self._bench.losses(0, [entries])[0])

    # -- the start -------------------------------------------------------------------------------------

    def _start(self) -> tuple[tuple[float, ...], Entries, str, float]:
        """Return the loss of every p, and the best start with its name and loss; the present clips are one of them."""
        best: tuple[Entries, str, float] = ((), "present clips", self._bench.level)
        losses: list[float] = []
        try:
            parts = self._lp_parts()
            starts = [tuple(e for part in parts for e in part[i]) for i in range(len(NORMS))]
            losses += [self._loss(start) for start in starts]
            number = int(np.argmin(losses))
            if losses[number] < best[2]:
                best = starts[number], f"p = {NORMS[number]:.2f}", losses[number]
            norm = stationary_norm(losses)
            if norm is not None:
                between_them = self._interpolated(norm, starts)
                found = self._loss(between_them)
                if found < best[2]:
                    best = between_them, f"p = {norm:.2f}, interpolated", found
        except _Spent:
            pass
        return tuple(losses), *best

    def _lp_parts(self) -> list[list[Entries]]:
        """Return for every searched tensor, and every p, its entries; codes that a solver chose stay as they are."""
        names = [name for unit, _ in self._groups for name in unit.group]
        values = float_values(self._setup.executor, self._bench.samples, self._setup.axes, names)
        parts: list[list[Entries]] = []
        for unit, moves in self._groups:
            parts.append(list(best_ranges(moves, np.concatenate([values[name] for name in unit.group]))))
        for unit, weight in self._weights:
            if not weight.solved and unit.weight is not None:
                parts.append([(e,) for e in best_factors(weight, unit.weight.array)])
        return parts

    def _interpolated(self, norm: float, starts: Sequence[Entries]) -> Entries:
        """Return the entries between those of the two nearest p: activations by their range, weights by the nearer."""
        shares = between(norm)
        near = max(shares, key=lambda i: shares[i])
        chosen = {e.name: e for e in starts[near]}
        for _, moves in self._groups:
            low = high = 0.0
            for index, share in shares.items():
                clip = next(e.clip for e in starts[index] if e.name == moves.entries[0].name) or (0.0, 0.0)
                low, high = low + share * clip[0], high + share * clip[1]
            chosen.update({e.name: e for e in moves.covering(low, high, f"the best of p = {norm:.2f}")})
        return tuple(chosen.values())

    # -- Powell ----------------------------------------------------------------------------------------

    def _powell(self, start: Entries, level: float) -> tuple[list[tuple[Entries, float]], tuple[int, int]]:
        """Return ever better entries from a start on, with losses, and (clips that were searched, clips there are)."""
        every = self._clips({e.name: e for e in start})
        room = max((self._evaluations - self._bench.tried) // LINE - 2, 0)
        # Fewer bits lose more to a wrong clip; where time is short, they go first.
        order = sorted(range(len(every)), key=lambda i: every[i].bits)[: max(room, 1)]
        clips = [every[i] for i in sorted(order)]
        search = _Search(self._loss, clips, {e.name: e for e in start}, (start, level))
        if not clips:
            return search.trail, (0, 0)
        options = {"xtol": TOLERANCE, "ftol": MIN_GAIN, "maxiter": ROUNDS, "direc": _directions(clips)}
        try:
            bounds = [(-BOUND, BOUND)] * len(clips)
            minimize(search, np.zeros(len(clips)), method="Powell", bounds=bounds, options=options)
        except _Spent:
            pass
        return search.trail, (len(clips), len(every))

    def _clips(self, start: dict[str, TensorPlan]) -> list[_Clip]:
        made = [_Clip(moves.num_bits, _range_of(_from(moves, start))) for _, moves in self._groups]
        for unit, weight in self._weights:
            if unit.weight is not None and weight.entry.spec is not None:
                origin = start.get(weight.entry.name)
                made.append(_Clip(weight.entry.spec.num_bits, _scale_of(weight, origin)))
        return made


def _from(moves: GroupMoves, start: dict[str, TensorPlan]) -> GroupMoves:
    entries = tuple(start.get(e.name, e) for e in moves.entries)
    return GroupMoves(entries, moves.limits, moves.decided_by)


def _range_of(moves: GroupMoves) -> Callable[[float], Entries]:
    """Return the group as a function of the logarithm of a factor of its range."""
    return lambda x: moves.clipped(float(np.exp(x)), float(np.exp(x)))


def _scale_of(weight: WeightMoves, origin: TensorPlan | None) -> Callable[[float], Entries]:
    """Return a weight as a function of the logarithm of a factor of its scales at the start."""
    factor = 1.0
    if origin is not None and origin.scale is not None and weight.entry.scale is not None:
        factor = float(np.max(origin.scale) / np.max(weight.entry.scale))
    make = weight.rescaled if weight.solved else weight.rounded
    return lambda x: (make(factor * float(np.exp(x))),)


def _directions(clips: Sequence[_Clip]) -> Float64:
    """Return the directions of the first round: all clips together, then one by one, as rows."""
    directions = np.eye(len(clips))
    directions[0] = 1.0
    return directions


class _Search:
    """The loss as a function of all clips, which remembers its way: every point that was better than those before it.

    A clip that has not moved leaves its entries as they are at the start.
    """

    def __init__(
        self,
        loss: Callable[[Entries], float],
        clips: Sequence[_Clip],
        start: dict[str, TensorPlan],
        best: tuple[Entries, float],
    ) -> None:
        self._loss, self._clips, self._start = loss, clips, start
        self.trail, self._first = [best], best[1]

    def __call__(self, point: Float64) -> float:
        if not np.any(point):
            return self._first
        entries = dict(self._start)
        for clip, x in zip(self._clips, point, strict=True):
            if x:
                entries.update({e.name: e for e in clip.at(float(x))})
        made = tuple(entries.values())
        found = self._loss(made)
        if found < self.trail[-1][1]:
            self.trail.append((made, found))
        return found
