"""What a compiled model does on emulated boards: the same outputs as here, and in how many instructions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.counts import Agreement, EmulatedOutput, EmulatedRun, InstructionCounts, NodeInstructions
from qcompiler.data import Dataset, Subset
from qcompiler.errors import RuntimeUnavailable, UsageError
from qcompiler.quant.grid import power_ratio_db
from qcompiler.recipe import Recipe
from qcompiler.records import Verdict
from qcompiler.runtime.emulation.board import Board, boards_for
from qcompiler.runtime.emulation.build import Emulator, prepare_emulator
from qcompiler.runtime.emulation.run import CountedModel, EmulatedFindings, EmulatedJob, run_emulated
from qcompiler.runtime.gate_process import GateJob, run_gate, write_samples
from qcompiler.runtime.machine import architecture
from qcompiler.runtime.optimized import FLOAT_OPS, RUNTIME_INSERTED, Origins
from qcompiler.state import Progress

SAMPLES = 4
"""Samples of the result that are compared; the original runs one."""
FLOAT_TOLERANCE = 1e-5
"""Float parts are computed in another order on another processor."""
REQUANTIZED_DB = 40.0
"""Where such a difference decides how a value is rounded to an integer, one step of a grid remains of it."""
MOBILE = "mobile"
"""What a job calls ``model.ort``, the form of the result for mobile builds."""
_REQUANTIZING = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmulationInputs:
    """What is run on the boards.

    Attributes:
        target: full name; it decides the boards.
        original / result: model files.
        float_model: the float model as it was loaded, for the names of its nodes.
        planned_model: the rewritten float model that was lowered; node names in the result are its.
        samples: the first few are run.
    """

    target: str
    original: Path
    result: Path
    float_model: ir.Model
    planned_model: ir.Model
    samples: Dataset


def emulator_for(recipe: Recipe, targets: Sequence[str], progress: Progress) -> Emulator | None:
    """Return the emulator if a recipe asks for it: before anything is compiled, because it may not be there.

    Args:
        recipe: what is asked.
        targets: full names.
        progress: told when something takes long.

    Raises:
        UsageError: it is asked for, and no target is an emulated board.
        RuntimeUnavailable: it cannot be had on this machine.
        OutputError: the cache cannot be written.
    """
    if recipe.verify != "emulate":
        return None
    if not any(boards_for(name) for name in targets):
        raise UsageError("verify is 'emulate', and no target is an ARM board; add --target arm, or leave it out")
    return prepare_emulator(lambda what: progress(what, 0, 0))


def verify_emulated(verdict: Verdict, inputs: EmulationInputs, emulator: Emulator) -> Verdict:
    """Return a verdict with what the boards found added; another answer than on this machine is a failure.

    Raises:
        RuntimeUnavailable: the original does not run on a board, or the emulation fails by itself.
    """
    boards = boards_for(inputs.target)
    failures, mobile = [], ""
    with tempfile.TemporaryDirectory(prefix="qcompile-emulation-") as name:
        folder = Path(name)
        count = write_samples(Subset(inputs.samples, tuple(range(min(SAMPLES, len(inputs.samples))))), folder)
        here = _outputs_here(inputs.result, folder, count)
        runs = []
        for board in boards:
            findings = _run(board, inputs, emulator, folder, count)
            if findings.failure:
                what = "model.ort" if findings.culprit == MOBILE else "the result"
                failures.append(f"{what} does not run on the emulated {board.name}: {findings.failure}")
                continue
            runs.append(_emulated_run(board, findings.models, inputs, here, folder))
            if MOBILE in findings.models:
                problem, mobile = _mobile_difference(board, runs[-1], folder)
                failures += [problem] if problem else []
    runs = [replace(run, versions=dict(emulator.versions)) for run in runs]
    failures += [problem for run in runs for problem in _differences(run)]
    ran = f"{verdict.executed_on}; emulated: {', '.join(board.name for board in boards)}"
    notes = (*verdict.notes, mobile) if mobile and not failures else verdict.notes
    failure = verdict.failure or "; ".join(failures)
    return replace(verdict, emulated=tuple(runs), executed_on=ran, failure=failure, notes=notes)


def _outputs_here(result: Path, folder: Path, count: int) -> dict[str, list[NDArray[np.generic]]]:
    """Return output -> its values on this machine, one per sample."""
    job = GateJob(original=None, result=result, samples=folder, count=count, threads=1, stages=("outputs",))
    findings = run_gate(job, folder)
    if findings.failure:
        raise RuntimeUnavailable(f"the result does not run on {architecture()}: {findings.failure}")
    return _read_outputs(folder, "result", count)


def _read_outputs(folder: Path, prefix: str, count: int) -> dict[str, list[NDArray[np.generic]]]:
    found: dict[str, list[NDArray[np.generic]]] = {}
    for index in range(count):
        with np.load(folder / f"{prefix}-{index:05d}.npz", allow_pickle=False) as archive:
            for name in archive.files:
                found.setdefault(name, []).append(archive[name])
    return found


def _run(board: Board, inputs: EmulationInputs, emulator: Emulator, folder: Path, count: int) -> EmulatedFindings:
    models, counts = {"original": inputs.original, "result": inputs.result}, {"original": 1, "result": count}
    mobile = inputs.result.with_suffix(".ort")
    if mobile.exists():
        models[MOBILE], counts[MOBILE] = mobile, count
    findings = run_emulated(emulator, board, EmulatedJob(models=models, counts=counts, samples=folder))
    if findings.failure and findings.culprit not in ("result", MOBILE):
        what = "the original" if findings.culprit == "original" else "ONNX Runtime"
        raise RuntimeUnavailable(f"{what} does not run on the emulated {board.name}: {findings.failure}")
    return findings


def _emulated_run(
    board: Board,
    models: Mapping[str, CountedModel],
    inputs: EmulationInputs,
    here: Mapping[str, list[NDArray[np.generic]]],
    folder: Path,
) -> EmulatedRun:
    original, result = models["original"], models["result"]
    count = max((len(values) for values in here.values()), default=0)
    there = _read_outputs(folder, f"{board.name}-result", count)
    requantizes = _requantizes(result, len(inputs.planned_model.graph.inputs))
    return EmulatedRun(
        board=board.name,
        kernels=board.kernels,
        samples=count,
        outputs=tuple(_compare(name, here[name], there[name], requantizes=requantizes) for name in here),
        float_nodes=_float_nodes(result, inputs.planned_model),
        original=original.runs[-1],
        result=result.runs[-1],
        spread=max(_spread(original), _spread(result)),
        nodes=node_instructions(models, inputs.float_model, inputs.planned_model),
        notes=tuple(
            f"instructions of the {kind} by node are not known: {model.nodes_unavailable}"
            for kind, model in models.items()
            if model.nodes_unavailable
        ),
    )


def _mobile_difference(board: Board, run: EmulatedRun, folder: Path) -> tuple[str, str]:
    """Return how ``model.ort`` differs from ``model.onnx`` on a board, "" if it does not, and what to note of it.

    Where the result is integers only, both files hold the same integers: nothing but equal bits will do.
    """
    plain, mobile = (_read_outputs(folder, f"{board.name}-{kind}", run.samples) for kind in ("result", MOBILE))
    loose = any(output.agreement == "requantized float" for output in run.outputs)
    compared = [_compare(name, plain[name], mobile[name], requantizes=loose) for name in plain]
    exact = all(output.agreement == "identical" for output in run.outputs)
    for output in compared:
        if output.agreement == "differs" or (exact and output.agreement != "identical"):
            share = f"{100 * output.max_relative:.3g} % of its largest value"
            return f"output '{output.name}' of model.ort on the emulated {board.name} differs by {share}", ""
    same = "the same bits" if all(output.agreement == "identical" for output in compared) else "the same outputs"
    return "", f"model.ort runs on the emulated boards and gives {same} as model.onnx there"


def _spread(model: CountedModel) -> float:
    totals = [run.total for run in model.runs]
    return (max(totals) - min(totals)) / max(totals)


def _requantizes(result: CountedModel, inputs: int) -> bool:
    """Return True if the board rounds anything to integers beside the inputs: then float parts decide integers."""
    operators = [op for _, op in result.operators]
    return operators.count("QuantizeLinear") > inputs or not _REQUANTIZING.isdisjoint(operators)


def _float_nodes(result: CountedModel, planned: ir.Model) -> tuple[str, ...]:
    origins = Origins(planned)
    names = set()
    for name, op in result.operators:
        if op in FLOAT_OPS:
            node = origins.find(name)
            names.add(node.name or name if node is not None else name)
    return tuple(sorted(names))


def _compare(
    name: str, here: list[NDArray[np.generic]], there: list[NDArray[np.generic]], *, requantizes: bool
) -> EmulatedOutput:
    pairs = list(zip(here, there, strict=True))
    if all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs):
        return EmulatedOutput(name=name, agreement="identical", max_relative=0.0)
    if any(a.shape != b.shape or a.dtype != b.dtype or a.dtype.kind not in "fiub" for a, b in pairs):
        return EmulatedOutput(name=name, agreement="differs", max_relative=float("inf"))
    a, b = (np.concatenate([v.astype(np.float64).ravel() for v in values]) for values in (here, there))
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return EmulatedOutput(name=name, agreement="differs", max_relative=float("inf"))
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    largest, error = float(np.abs(a).max(initial=0.0)), float(np.abs(a - b).max(initial=0.0))
    relative = error / largest if largest else float("inf") if error else 0.0
    agreement: Agreement = "differs"
    if relative <= FLOAT_TOLERANCE and here[0].dtype.kind == "f":
        agreement = "float rounding"
    elif requantizes and (power_ratio_db(float(a @ a), float(np.sum((a - b) ** 2))) or 0.0) >= REQUANTIZED_DB:
        agreement = "requantized float"
    return EmulatedOutput(name=name, agreement=agreement, max_relative=relative)


def _differences(run: EmulatedRun) -> list[str]:
    return [
        f"output '{output.name}' on the emulated {run.board} differs from {architecture()} by "
        f"{100 * output.max_relative:.3g} % of its largest value{_excuse()}"
        for output in run.outputs
        if output.agreement == "differs"
    ]


def _excuse() -> str:
    """Return what may be the cause on this machine's side."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    if architecture() != "x86-64" or "vnni" in flags:
        return ""
    return " (this processor has no VNNI, and its 8-bit products may saturate)"


def node_instructions(
    models: Mapping[str, CountedModel], original: ir.Model, planned: ir.Model
) -> tuple[NodeInstructions, ...]:
    """Return the instructions of every original node before and after, the most expensive first.

    Args:
        models: "original" and "result" -> what was counted; either may be missing.
        original: the float model as it was loaded.
        planned: the rewritten float model. What the runtime added is one row of its own.
    """
    spent: dict[str, dict[str, InstructionCounts]] = {}
    types = {RUNTIME_INSERTED: ""}
    for kind, found in models.items():
        origins = Origins(original if kind == "original" else planned)
        for (name, _), counts in zip(found.operators, found.nodes, strict=False):
            node = origins.find(name)
            origin = node.name or "" if node is not None else RUNTIME_INSERTED
            if node is not None:
                types.setdefault(origin, node.op_type)
            row = spent.setdefault(origin, {})
            row[kind] = row.get(kind, InstructionCounts()).plus(counts)
    rows = (
        NodeInstructions(name=n, op_type=types[n], before=row.get("original"), after=row.get("result"))
        for n, row in spent.items()
    )
    return tuple(sorted(rows, key=lambda r: (-max(c.total for c in (r.before, r.after) if c), r.name)))
