"""The meter of a target that is emulated: a split is judged by the instructions that the board runs, never by time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from qcompiler.errors import RuntimeUnavailable
from qcompiler.model.save import save_model
from qcompiler.placement.cut import CONVERSIONS, FLOAT, INTEGER, BoundaryCost
from qcompiler.placement.meter import Measured
from qcompiler.records import Metric
from qcompiler.runtime.emulation.board import Board
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.runtime.emulation.run import CountedModel, EmulatedJob, run_emulated
from qcompiler.runtime.optimized import Origins
from qcompiler.state import State

QUANTIZE, LAYOUT = CONVERSIONS & {"QuantizeLinear", "DequantizeLinear"}, CONVERSIONS & {"Transpose"}
LARGE = 2048
"""Elements of a conversion from which on the correction for the profiler is small against what it counts."""
USUAL = {QUANTIZE: 2.0, LAYOUT: 2.6}
"""Instructions per element where a model has no conversion of that size: counted on the board of a Cortex-A76."""


@dataclass
class InstructionMeter:
    """Instructions of one run on an emulated board.

    Attributes:
        emulator: a ready emulator.
        board: the board that the target stands for.
        totals: model file -> instructions of one run, as far as counted.
    """

    name: ClassVar[str] = "counted-placement"
    quantity: ClassVar[str] = "instructions (emulated)"
    unit: ClassVar[str] = "instructions"
    min_win: ClassVar[float] = 0.005
    """The allocator makes runs in two processes differ by some 3000 instructions: 0.3 % of a model of a million."""
    boundary_factors: ClassVar[tuple[float, ...]] = (1.0, 3.0, math.inf)
    """A boundary can also keep the runtime from fusing nodes, hence 3; the last is everything in float."""

    aligns: ClassVar[bool] = False
    """The kernel that reads channels by fours is one of x86 processors."""
    emulator: Emulator
    board: Board
    totals: dict[Path, float] = field(default_factory=dict)

    def measure(self, state: State, integer: Path, folder: Path) -> Measured:
        """Return the instructions of every node on both sides, each from one run of the whole model.

        Raises:
            RuntimeUnavailable: the float model does not run on the board.
        """
        original = folder / "float.onnx"
        save_model(state.model, original)
        found = self._count({FLOAT: original, INTEGER: integer}, folder)
        costs: dict[tuple[str, str], float] = {}
        for side, counted in found.items():
            costs |= {(name, side): count for name, count in node_costs(counted, state.model).items()}
        metrics = [
            Metric(f"counted {self.quantity} in {side}", _least(counted), self.unit) for side, counted in found.items()
        ]
        fixed = min((_around(counted) for counted in found.values()), default=0.0)
        boundary = conversion_cost(found.values())
        return Measured(costs=costs, boundary=boundary, fixed=fixed, metrics=tuple(metrics))

    def ratio(self, integer: Path, split: Path, folder: Path) -> tuple[float, float]:
        """Return the instructions of a split over those of the all-integer model, and its own; infinity if unknown."""
        if integer not in self.totals:
            return math.inf, math.inf
        self._count({"split": split}, folder, nodes=False)
        reached = self.totals.get(split, math.inf)
        return reached / self.totals[integer], reached

    def _count(self, models: dict[str, Path], folder: Path, *, nodes: bool = True) -> dict[str, CountedModel]:
        """Return what was counted; nothing if a compiled model does not run, which is for the gate to tell."""
        job = EmulatedJob(models=models, counts=dict.fromkeys(models, 0), samples=folder, nodes=nodes)
        findings = run_emulated(self.emulator, self.board, job)
        if findings.failure and findings.culprit not in (INTEGER, "split"):
            what = "the model" if findings.culprit else "ONNX Runtime"
            raise RuntimeUnavailable(f"{what} does not run on the emulated {self.board.name}: {findings.failure}")
        for kind, counted in findings.models.items():
            self.totals[models[kind]] = _least(counted)
        return dict(findings.models)


def node_costs(counted: CountedModel, model: ir.Model) -> dict[str, float]:
    """Return node name -> instructions, with what the runtime runs for one node added up.

    Conversions are left out: where they stand depends on the split, and the boundary pays for them.

    Args:
        counted: a run of the model or of what was lowered from it.
        model: the model whose nodes are asked for.
    """
    origins = Origins(model)
    found: dict[str, float] = {}
    for (name, op_type), counts in zip(counted.operators, counted.nodes, strict=False):
        node = origins.find(name)
        if node is not None and (op_type not in CONVERSIONS or node.op_type == op_type):
            found[node.name or ""] = found.get(node.name or "", 0.0) + counts.total
    return found


def conversion_cost(runs: Iterable[CountedModel]) -> BoundaryCost:
    """Return the instructions of a boundary: one quantization, one change of layout, and what two nodes cost at all.

    Args:
        runs: counted models; their conversions and what the runtime spends around their nodes are what is used.
    """
    counted = list(runs)
    rate = 0.0
    for kinds, usual in USUAL.items():
        seen = [row for model in counted for row in _conversions(model) if row[0] in kinds and row[2] >= LARGE]
        elements = sum(size for _, _, size in seen)
        rate += sum(count for _, count, _ in seen) / elements if elements else usual
    each = [_around(model) / len(model.nodes) for model in counted if model.nodes]
    return BoundaryCost(per_element=rate, least=2.0 * min(each, default=0.0))


def _least(model: CountedModel) -> float:
    """Return the instructions of the cheaper run: what differs between runs is only ever added."""
    return float(min(run.total for run in model.runs))


def _around(model: CountedModel) -> float:
    """Return the instructions of a run that lie outside of all nodes: the call, and the runtime's own work."""
    return max(0.0, _least(model) - sum(node.total for node in model.nodes))


def _conversions(model: CountedModel) -> list[tuple[str, int, int]]:
    """Return (operator, instructions, elements) of every conversion of a model."""
    rows = zip(model.operators, model.nodes, model.elements, strict=False)
    return [(op, counts.total, size) for (_, op), counts, size in rows if op in CONVERSIONS]
