"""The walk of clip-round-search: one layer after the other, each on top of what was decided before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.budget import Checkpoint
from qcompiler.executor.binding import binding_of, decoded_weight
from qcompiler.executor.setup import SearchSetup
from qcompiler.plan import CompressionPlan, TensorPlan
from qcompiler.search.bench import Bench, Clock, Entries
from qcompiler.search.means import channel_means, float_means, quantized_mean
from qcompiler.search.moves import GroupMoves, WeightMoves, bias_entry, group_moves
from qcompiler.search.pace import GRIDS, Grid, Pace, choose_pace, step_seconds
from qcompiler.search.units import Unit, searched_units
from qcompiler.state import State

NAME = "clip-round-search"
HALVES = (0.5, 1.0)
"""Parts of the measured shift of a layer's mean that its bias may take back."""


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What became of one stop: the losses around it, and how many of its candidates were taken."""

    name: str
    before: float
    after: float
    taken: int


@dataclass(frozen=True, slots=True, eq=False)
class ClipRoundResult:
    """The plan that was found, and how.

    Attributes:
        before / after: (loss on the rows that were searched on, on those that confirmed) around the search.
        complete: every stop was reached before the time was over.
    """

    plan: CompressionPlan
    pace: Pace
    units: tuple[UnitRecord, ...]
    before: tuple[float, float]
    after: tuple[float, float]
    tried: int
    refused: int
    complete: bool


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """What a long search reports to, and where it keeps finished parts."""

    clock: Clock
    checkpoint: Checkpoint
    report: Callable[[int, int], None]


def search_clip_and_rounding(
    setup: SearchSetup, state: State, progress: Progress, wanted: Pace | None = None
) -> ClipRoundResult:
    """Walk through the network once and return what was found; what time does not reach stays as it was.

    Args:
        setup: executor and samples.
        state: where to start.
        progress: clock, checkpoint and whom to tell.
        wanted: grid and rows; by default the most that fit into the clock's time.
    """
    units = searched_units(state, setup.executor)
    pace = wanted or _kept_pace(setup, state, units, progress)
    bench = Bench(setup, state, pace.rows)
    steps = [u.step for u in units if u.node]
    walk = _Walk(bench, state, pace.grid, progress.clock, float_means(setup.executor, bench.samples, setup.axes, steps))
    before, records, reached = (bench.level, bench.confirmed), list[UnitRecord](), 0
    for number, unit in enumerate(units):
        progress.report(number, len(units))
        key = f"stop {number}"
        saved = progress.checkpoint.load(key)
        if saved is None and progress.clock.over():
            break
        level = bench.level
        if saved is not None:
            taken = _restore(bench, unit, saved)
        else:
            taken = walk.visit(unit)
            if not progress.clock.over():  # a stop that was cut short is not finished
                progress.checkpoint.save(key, _saved(bench, unit, taken))
        records.append(UnitRecord(unit.name, level, bench.level, taken))
        reached += 1
    return ClipRoundResult(
        plan=bench.plan,
        pace=Pace(pace.grid, bench.rows),
        units=tuple(records),
        before=before,
        after=(bench.level, bench.confirmed),
        tried=bench.tried,
        refused=bench.refused,
        complete=reached == len(units) and not progress.clock.over(),
    )


def _kept_pace(setup: SearchSetup, state: State, units: Sequence[Unit], progress: Progress) -> Pace:
    """Return the pace of the search that is resumed, else the one that fits into the time."""
    saved = progress.checkpoint.load("pace")
    if saved is not None:
        return Pace(GRIDS[int(saved["grid"])], int(saved["rows"]))
    steps = step_seconds(setup, binding_of(state, setup.executor))
    rows = setup.loss.rows
    pace = choose_pace(units, steps, max(rows - rows // 4, 1), progress.clock.left_s())
    arrays = {"grid": np.asarray(GRIDS.index(pace.grid)), "rows": np.asarray(pace.rows)}
    progress.checkpoint.save("pace", arrays)
    return pace


class _Walk:
    """Decides stop by stop.

    Args:
        bench: measures and takes candidates.
        state: where the search started.
        grid: what is tried.
        clock: ends a stop between two rounds of candidates.
        means: of the layers' inputs in the float model, by value name.
    """

    def __init__(self, bench: Bench, state: State, grid: Grid, clock: Clock, means: Mapping[str, torch.Tensor]) -> None:
        self._bench, self._state, self._grid, self._clock, self._means = bench, state, grid, clock, means
        self._mean: torch.Tensor | None = None

    def visit(self, unit: Unit) -> int:
        """Search everything at a stop and return how many candidates were taken."""
        before = self._bench.taken
        self._mean = None
        if unit.node:
            axes = self._bench.setup.axes
            self._mean = quantized_mean(self._bench.search, unit.step, self._bench.rows, axes)
        if unit.weight is not None:
            self._weight(unit, WeightMoves(unit.weight, self._state, NAME))
        if unit.group and (self._grid.wide or unit.narrow) and not self._clock.over():
            self._group(unit)
        if unit.node and not self._clock.over():
            self._bias(unit)
        return self._bench.taken - before

    def _best(self, step: int, candidates: Sequence[Entries]) -> tuple[int, float]:
        """Return the number and the loss of the best candidate."""
        losses = self._bench.losses(step, candidates)
        best = int(np.argmin(losses))
        return best, float(losses[best])

    # -- weights ---------------------------------------------------------------------------------------

    def _weight(self, unit: Unit, moves: WeightMoves) -> None:
        """Try other scales, then other rounding where rounding anew is best, then the neighbors of the best."""
        factors = self._grid.factors
        fresh = [(f, 0.0) for f in (*factors, 1.0)] if self._grid.anew or not moves.solved else []
        kept = [(f, None) for f in factors] if moves.solved else []
        pairs: list[tuple[float, float | None]] = [*fresh, *kept]
        entries = [self._with_bias(unit, _weight_at(moves, f, s)) for f, s in pairs]
        if moves.solved:
            entries.append(self._with_bias(unit, moves.refitted()))
        best, level = self._best(unit.step, entries)
        chosen = entries[best]
        pair = pairs[best] if best < len(pairs) else (1.0, None)
        if pair[1] is not None and self._grid.shifts and not self._clock.over():
            pair, chosen, level = self._shifted(unit, moves, pair[0], (chosen, level))
        if self._grid.refined and not self._clock.over():
            near = [p for p in _neighbors(pair, self._grid) if p != pair]
            entries = [self._with_bias(unit, _weight_at(moves, f, s)) for f, s in near]
            best, found = self._best(unit.step, entries)
            chosen, level = (entries[best], found) if found < level else (chosen, level)
        self._bench.take(unit.step, chosen, level)

    def _shifted(
        self, unit: Unit, moves: WeightMoves, factor: float, best: tuple[Entries, float]
    ) -> tuple[tuple[float, float | None], Entries, float]:
        entries = [self._with_bias(unit, moves.rounded(factor, s)) for s in self._grid.shifts]
        number, level = self._best(unit.step, entries)
        if level < best[1]:
            return (factor, self._grid.shifts[number]), entries[number], level
        return (factor, 0.0), *best

    def _with_bias(self, unit: Unit, entry: TensorPlan) -> Entries:
        """Return a weight's candidate with the bias that keeps the mean of the layer's output where it is."""
        if self._mean is None:
            return (entry,)
        executor = self._bench.executor
        old = self._bench.search.binding.parameters.get(entry.name, executor.parameters[entry.name])
        change = decoded_weight(entry, executor) - old
        moved = channel_means(executor.steps[unit.step], self._mean, change)
        return entry, self._bias_at(unit, self._correction(unit, moved.size) - moved)

    # -- biases ----------------------------------------------------------------------------------------

    def _correction(self, unit: Unit, channels: int) -> NDArray[np.float64]:
        entry = self._bench.plan.tensors.get(f"{unit.node}:bias")
        return np.zeros(channels) if entry is None or entry.correction is None else entry.correction

    def _bias_at(self, unit: Unit, correction: NDArray[np.float64]) -> TensorPlan:
        return bias_entry(self._bench.plan.tensors, unit.node, correction, NAME)

    def _bias(self, unit: Unit) -> None:
        """Take back how far the mean of the layer's output is from that of the float model, or half of it."""
        executor = self._bench.executor
        step = executor.steps[unit.step]
        mean = self._means.get(step.inputs[0])
        if self._mean is None or mean is None or unit.weight is None:
            return
        name = unit.weight.entry.name
        stored = self._bench.search.binding.parameters.get(name, executor.parameters[name])
        wanted = channel_means(step, mean, executor.parameters[name]) - channel_means(step, self._mean, stored)
        now = self._correction(unit, wanted.size)
        entries: list[Entries] = [(self._bias_at(unit, now + part * (wanted - now)),) for part in HALVES]
        best, level = self._best(unit.step, entries)
        self._bench.take(unit.step, entries[best], level)

    # -- activations -----------------------------------------------------------------------------------

    def _group(self, unit: Unit) -> None:
        """Try other ranges on both sides, then on either; then a shift of the rounding where a bias can hold it."""
        factors = self._grid.factors
        self._ranges(unit, [(f, f) for f in factors])
        moves = self._moves(unit)
        if moves.two_sided and not self._clock.over():
            self._ranges(unit, [(1.0, f) for f in factors])
            self._ranges(unit, [(f, 1.0) for f in factors])
        if self._grid.refined and not self._clock.over():
            near = (0.98, 1.0, 1.02)
            self._ranges(
                unit, [(a, b) for a in (near if moves.two_sided else (1.0,)) for b in near if a != 1 or b != 1]
            )
        if self._mean is not None and unit.narrow and self._grid.shifts and not self._clock.over():
            self._offsets(unit, self._moves(unit))

    def _moves(self, unit: Unit) -> GroupMoves:
        return group_moves(self._state.model, self._bench.plan, unit.group, NAME)

    def _ranges(self, unit: Unit, pairs: Sequence[tuple[float, float]]) -> None:
        moves = self._moves(unit)
        entries = [moves.clipped(low, high) for low, high in pairs]
        best, level = self._best(unit.step, entries)
        self._bench.take(unit.step, entries[best], level)

    def _offsets(self, unit: Unit, moves: GroupMoves) -> None:
        """Try parts of a code, added to the layer's bias: that is rounding with another border, exactly."""
        if unit.weight is None or unit.weight.entry.scale is None:
            return
        now = self._correction(unit, unit.weight.entry.scale.size)
        entries: list[Entries] = [(self._bias_at(unit, now + s * moves.step),) for s in self._grid.shifts]
        best, level = self._best(unit.step, entries)
        self._bench.take(unit.step, entries[best], level)


def _weight_at(moves: WeightMoves, factor: float, shift: float | None) -> TensorPlan:
    return moves.rescaled(factor) if shift is None else moves.rounded(factor, shift)


def _neighbors(pair: tuple[float, float | None], grid: Grid) -> list[tuple[float, float | None]]:
    """Return the pairs around a pair, at about half the distance of the grid."""
    factor, shift = pair
    near = [factor * f for f in (0.985, 1.0, 1.015)]
    if shift is None:
        return [(f, None) for f in near]
    return [(f, s) for f in near for s in (shift - 0.025, shift, shift + 0.025)]


# -- checkpoints ---------------------------------------------------------------------------------------

_FIELDS = ("scale", "zero_point", "codes", "correction")


def _touched(plan: CompressionPlan, unit: Unit) -> list[TensorPlan]:
    names = [unit.weight.entry.name] if unit.weight is not None else []
    names += [f"{unit.node}:bias"] if unit.node else []
    return [plan.tensors[n] for n in (*names, *unit.group) if n in plan.tensors]


def _saved(bench: Bench, unit: Unit, taken: int) -> dict[str, NDArray[Any]]:
    """Return the decisions of a stop as arrays."""
    arrays: dict[str, NDArray[Any]] = {"levels": np.asarray([bench.level, bench.confirmed]), "taken": np.asarray(taken)}
    arrays["counts"] = np.asarray([bench.tried, bench.refused])
    for number, entry in enumerate(_touched(bench.plan, unit)):
        arrays[f"{number}:name"] = np.asarray(entry.name)
        arrays[f"{number}:text"] = np.asarray([entry.reason, *entry.decided_by])
        clip = entry.clip or ()
        arrays[f"{number}:clip"] = np.asarray(clip, np.float64)
        if entry.error_db is not None:
            arrays[f"{number}:error_db"] = np.asarray(entry.error_db)
        arrays.update({f"{number}:{f}": v for f in _FIELDS if (v := getattr(entry, f)) is not None})
    return arrays


def _restore(bench: Bench, unit: Unit, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Take over the decisions of a stop that was finished before; return how many candidates it took."""
    entries, number = list[TensorPlan](), 0
    while f"{number}:name" in arrays:
        name = str(arrays[f"{number}:name"])
        base = bench.plan.tensors.get(name) or bias_entry({}, name.removesuffix(":bias"), np.zeros(0), NAME)
        reason, *decided = (str(t) for t in arrays[f"{number}:text"])
        clip = arrays[f"{number}:clip"]
        error = arrays.get(f"{number}:error_db")
        made: dict[str, Any] = {f: arrays[f"{number}:{f}"] for f in _FIELDS if f"{number}:{f}" in arrays}
        made |= {"reason": reason, "decided_by": tuple(decided)}
        made |= {"clip": (float(clip[0]), float(clip[1])) if clip.size else None}
        entries.append(replace(base, **made, error_db=None if error is None else float(error)))
        number += 1
    level, confirmed = (float(v) for v in arrays["levels"])
    bench.adopt(tuple(entries), level, confirmed)
    bench.tried, bench.refused = (int(v) for v in arrays["counts"])
    taken = int(arrays["taken"])
    bench.taken += taken
    return taken
