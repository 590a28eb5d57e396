"""Who places the nodes at -O2: the target's table, time on this machine, or instructions on an emulated board."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from qcompiler.data import Dataset
from qcompiler.placement.instructions import InstructionMeter
from qcompiler.placement.latency import LatencyMeter
from qcompiler.placement.meter import Meter
from qcompiler.placement.search import place_by_measurement
from qcompiler.records import PassReport
from qcompiler.runtime.emulation.board import boards_for
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.shared_plan import PlacedBy, placed_by
from qcompiler.state import Context, State


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placing:
    """What placement by measurement needs beside the state.

    Attributes:
        context: of the compilation.
        samples: the first one is run.
        lower: writes a planned state into a graph.
        emulator: a ready emulator; None where none was asked for.
    """

    context: Context
    samples: Dataset
    lower: Callable[[State], ir.Model]
    emulator: Emulator | None


def place_measured(state: State, reports: tuple[PassReport, ...], job: Placing) -> tuple[State, tuple[PassReport, ...]]:
    """Return the state with the network split by what was measured, as far as anything can be for the target.

    Args:
        state: a completely planned state.
        reports: of the passes so far; that of the placement is added.
        job: what the placement needs.

    Raises:
        RuntimeUnavailable: the model does not run on the emulated board.
    """
    meter = METERS[placed_by(job.context.target, job.context.recipe)](job)
    if meter is None:
        return state, reports
    started = time.perf_counter()
    state, report = place_by_measurement(state, job.context, job.samples, job.lower, meter)
    return state, (*reports, replace(report, seconds=time.perf_counter() - started))


def _instructions(job: Placing) -> Meter | None:
    board = boards_for(job.context.target.full_name)[0]
    return InstructionMeter(job.emulator, board) if job.emulator is not None else None


METERS: dict[PlacedBy, Callable[[Placing], Meter | None]] = {
    PlacedBy.TABLE: lambda job: None,
    PlacedBy.LATENCY: lambda job: LatencyMeter(job.context),
    PlacedBy.INSTRUCTIONS: _instructions,
}
