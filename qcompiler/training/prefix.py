"""The walk through a model's layers, each solved again for what the compressed layers before it make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.errors import QCompileError
from qcompiler.executor.batching import Axes, Axis, row_count
from qcompiler.executor.binding import Binding, Decoded, binding_of
from qcompiler.executor.executor import Step
from qcompiler.executor.loss import ROWS_AT_ONCE
from qcompiler.executor.setup import SearchSetup
from qcompiler.layer_problems import PlannedWeight, planned_weights, row_floor, takes_mean_back
from qcompiler.lowering import weight_codes
from qcompiler.plan import Role, TensorPlan
from qcompiler.quant.levels import Levels, uniform_levels
from qcompiler.quant.solvers.contest import Layer, hold_contest
from qcompiler.quant.solvers.drift import DriftAccumulator, DriftMoments
from qcompiler.quant.solvers.problem import Solution
from qcompiler.quant.weights import as_rows
from qcompiler.runtime.grams import POSITIONS, input_columns
from qcompiler.state import Context, State
from qcompiler.training.blocks import Block, Streams

HELD_SHARE = 4
"""One in so many calibration rows decides instead of solving."""
FEWEST_ROWS = 8
AS_IT_WAS = "as it was"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What became of one layer.

    Attributes:
        weight: its name.
        before / after: error on held-out rows, relative to the power of the output.
        winner: how much the target was drawn towards the float weights, or "as it was".
    """

    weight: str
    before: float
    after: float
    winner: str

    @property
    def changed(self) -> bool:
        """Return True if the codes are others than before."""
        return self.winner != AS_IT_WAS


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    name: str
    solution: Solution
    error: float


@dataclass(slots=True, eq=False)
class PrefixWalk:
    """Solves the codes of one layer after the other, in the order in which they run.

    Attributes:
        setup: executor and calibration samples; the acceptance samples are not looked at.
        context: budget and progress.
        name: of the pass, for the plan.
        solvers: names in ``quant.solvers.SOLVERS``.
        shares: how far targets are drawn towards the float weights; see ``DriftMoments.target``.
        limit: multiply-accumulates that a solver may take on one layer.
        records: of the layers that were done.
        notes: what had to be given up, in words.
        decoded: weights of the compressed model, of which a layer changes one.
    """

    setup: SearchSetup
    context: Context
    name: str
    solvers: Sequence[str]
    shares: Sequence[float]
    limit: float = 3e11
    records: list[LayerRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decoded: Decoded = field(default_factory=dict)

    def run(self, state: State) -> State:
        """Return the state with the best of every layer; a budget that is spent leaves the rest as it was.

        Raises:
            QCompileError: samples cannot share a run.
        """
        executor, axes = self.setup.executor, self.setup.axes
        if axes is None:
            raise QCompileError("samples of this model cannot share a run, which solving behind layers needs")
        weights = {w.uses[0][0].name or "": w for w in planned_weights(state, range(1, 8)) if _alone(w)}
        places = [i for i, s in enumerate(executor.steps) if s.name in weights and s.inputs[0] in axes]
        streams = self._streams(axes)
        before = 0
        for number, place in enumerate(places):
            self.context.progress("solving on what is compressed", number, len(places))
            if self.context.budget.spent():
                self.notes.append(f"layers from '{executor.steps[place].name}' on are as they were")
                break
            binding = binding_of(state, executor, self.decoded)
            self._advance(streams, before, place, binding)
            before = place
            state = self._solved(state, weights[executor.steps[place].name], executor.steps[place], streams)
        return state

    def _streams(self, axes: Axes) -> tuple[Streams, Streams]:
        """Return the rows to solve on and those that decide."""
        rows = torch.arange(row_count(self.setup.samples))
        held = rows % HELD_SHARE == HELD_SHARE - 1
        solved, decided = (rows[~held], rows[held]) if held.any() else (rows, rows)
        return self._stream(axes, solved), self._stream(axes, decided)

    def _stream(self, axes: Axes, rows: Tensor) -> Streams:
        feeds = {n: _rows(v, rows, axes.get(n)) for n, v in self.setup.samples.items()}
        return Streams(self.setup.executor, axes, feeds, self.setup.loss.outputs, ROWS_AT_ONCE)

    def _advance(self, streams: Sequence[Streams], start: int, stop: int, binding: Binding) -> None:
        """Move both streams to the inputs of a layer, on fewer rows where they do not fit into memory."""
        executor, wanted = self.setup.executor, self.setup.loss.outputs
        alive = executor.live_before(stop, wanted)
        block = Block(executor.steps[stop].name, start, stop, executor.live_before(start, wanted), alive, frozenset())
        if start == stop:
            return
        train, held = streams
        while not self.context.budget.allows(train.bytes_for(block) + held.bytes_for(block)):
            if train.rows <= FEWEST_ROWS:
                break
            train.keep(train.rows // 2)
            self.notes.append(f"from layer '{block.name}' on {train.rows} rows are used, to save memory")
        for stream in streams:
            stream.enter(block)
            stream.leave(block, binding)

    def _solved(self, state: State, weight: PlannedWeight, step: Step, streams: Sequence[Streams]) -> State:
        """Return the state with the best codes of a layer, and with the bias that goes with them."""
        binding = binding_of(state, self.setup.executor, self.decoded)
        centered = takes_mean_back(weight.uses[0][0], state.plan)
        search, held = (self._moments(s, weight, step, binding, centered) for s in streams)
        exact, levels = weight.rows(), _levels(weight)
        present = _present(weight)
        power = max(held.power(exact), 1e-30)
        candidates = [_Candidate(AS_IT_WAS, present, float(held.error(exact, present).sum()))]
        for share in self.shares:
            layer = Layer(
                weight=search.target(exact, share),
                gram=search.found,
                held=held.found,
                floor=row_floor(state, weight),
                kernel=weight.layout.kernel if weight.layout is not None else 1,
            )
            contest = hold_contest(layer, {"planned": levels}, self.solvers, self.limit)
            for entrant in contest.entrants:
                error = float(held.error(exact, entrant.solution).sum())
                candidates.append(_Candidate(f"{entrant.solver}, {share:g}", entrant.solution, error))
        best = min(candidates, key=lambda c: c.error)
        self.records.append(
            LayerRecord(
                weight=weight.entry.name, before=candidates[0].error / power, after=best.error / power, winner=best.name
            )
        )
        entries = [] if best is candidates[0] else [self._entry(weight, best)]
        if centered:
            shift = search.shift(exact, best.solution).reshape(-1)
            entries.append(self._bias(state, step.name, shift))
        return replace(state, plan=state.plan.with_tensors(*entries))

    def _moments(
        self, stream: Streams, weight: PlannedWeight, step: Step, binding: Binding, centered: bool
    ) -> DriftMoments:
        layout, name = weight.layout, step.inputs[0]
        if layout is None:
            raise ValueError("a layer without a layout has no moments")
        total = DriftAccumulator(layout.groups, layout.inputs)
        limit = max(POSITIONS // stream.rows, 1)
        found = _as_read(stream.found[name], name, step, binding)
        for row in range(stream.rows):
            part = torch.tensor([row])
            pair = [stream.part({name: v}, part)[name].cpu().numpy() for v in (stream.exact[name], found)]
            seed = (self.context.recipe.seed, row)
            total.add(*(input_columns(layout, data, limit, seed) for data in pair))
        return total.result(centered=centered)

    def _entry(self, weight: PlannedWeight, best: _Candidate) -> TensorPlan:
        scale = weight.scale(best.solution.scale)
        reach = float(np.abs(best.solution.codes).max(initial=0)) * float(scale.max())
        return replace(
            weight.entry,
            codes=weight.shaped(best.solution.codes),
            scale=scale,
            clip=(-reach, reach),
            reason=f"{weight.entry.reason}; solved again behind compressed layers ({best.name})",
            decided_by=(*weight.entry.decided_by, self.name),
        )

    def _bias(self, state: State, node: str, shift: NDArray[np.float64]) -> TensorPlan:
        known = state.plan.tensors.get(f"{node}:bias") or TensorPlan(name=f"{node}:bias", role=Role.BIAS)
        return replace(
            known,
            correction=shift,
            reason="mean error of the rounded weights on compressed inputs",
            decided_by=(*known.decided_by, self.name),
        )


def _alone(weight: PlannedWeight) -> bool:
    """Return True for a weight that can be solved by itself, code by code."""
    planned = weight.entry.scale is not None and not weight.entry.bound
    return weight.layout is not None and len(weight.uses) == 1 and planned


def _rows(value: Tensor, rows: Tensor, axis: Axis) -> Tensor:
    return value if not isinstance(axis, int) else value.index_select(axis, rows.to(value.device))


def _as_read(value: Tensor, name: str, step: Step, binding: Binding) -> Tensor:
    """Return a value of the compressed model as a layer reads it."""
    function = binding.values.get(name)
    if function is not None and binding.is_seen_by(name, step.name):
        value = function(value)
    own = binding.inputs.get(step.name, {}).get(0)
    return value if own is None else own(value)


def _levels(weight: PlannedWeight) -> Levels:
    return uniform_levels(weight.num_bits) if weight.entry.levels is None else weight.entry.levels


def _present(weight: PlannedWeight) -> Solution:
    """Return the planned codes and scales as the solvers have them."""
    entry, groups = weight.entry, weight.rows().shape[0]
    codes = weight_codes(weight.array, entry)
    flat = codes.reshape(1, -1) if weight.axis is None else as_rows(codes.astype(np.float32), weight.axis)
    scale = np.asarray(entry.scale, np.float64).reshape(-1)
    return Solution(flat.reshape(weight.rows().shape).astype(np.int8), scale.reshape(groups, -1))
