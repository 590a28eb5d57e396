"""Counting what a model, or two, run on an emulated board."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from qcompiler.counts import InstructionCounts, NodeInstructions
from qcompiler.errors import RuntimeUnavailable
from qcompiler.inspection.profiling import model_file, one_sample
from qcompiler.model.read import read_source, to_ir
from qcompiler.runtime.emulation.board import find_board
from qcompiler.runtime.emulation.build import prepare_emulator
from qcompiler.runtime.emulation.check import node_instructions
from qcompiler.runtime.emulation.run import EmulatedJob, run_emulated
from qcompiler.runtime.gate_process import write_samples
from qcompiler.state import Progress, no_progress

SCHEME = "emulated:"
"""What the name of a device starts with that is an emulated board."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountResult:
    """What was counted.

    Attributes:
        board: name of the emulated board.
        model / other: the model files; ``other`` is None if one model was run.
        source: where the sample comes from.
        counts: instructions of one run of ``model``.
        other_counts: of ``other``; None without it.
        nodes: by node of both models, "after" in ``model`` and "before" in ``other``, the most expensive first.
        versions: of qemu and of what ran in it.
        notes: what could not be counted, and why.
    """

    board: str
    model: Path
    other: Path | None
    source: str
    counts: InstructionCounts
    other_counts: InstructionCounts | None = None
    nodes: tuple[NodeInstructions, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def count_model(
    model: Path,
    other: Path | None = None,
    *,
    device: str,
    data: str | None = None,
    progress: Progress = no_progress,
) -> CountResult:
    """Count the instructions of one run of a model on an emulated board, and of another to compare it with.

    Args:
        model: a model file, or a result folder.
        other: a model file or a result folder that takes the same inputs.
        device: ``emulated:`` and the name of a board.
        data: samples as ``open_dataset`` takes them, the first is run; None generates one.
        progress: told when something takes long.

    Raises:
        UsageError: there is no such board.
        ModelError: a model cannot be read.
        DataError: the data does not fit the model.
        RuntimeUnavailable: boards cannot be emulated here, or a model does not run on this one.
    """
    board = find_board(device.removeprefix(SCHEME))
    files = {"result": model_file(model), **({"original": model_file(other)} if other is not None else {})}
    graphs = {kind: to_ir(read_source(path)) for kind, path in files.items()}
    sample = one_sample(graphs["result"], data)
    emulator = prepare_emulator(lambda what: progress(what, 0, 0))
    with tempfile.TemporaryDirectory(prefix="qcompile-count-") as name:
        write_samples(sample, Path(name))
        job = EmulatedJob(models=files, counts=dict.fromkeys(files, 0), samples=Path(name))
        findings = run_emulated(emulator, board, job)
    if findings.failure:
        which = files.get(findings.culprit, "the model")
        raise RuntimeUnavailable(f"{which} does not run on the emulated {board.name}: {findings.failure}")
    found = findings.models
    problems = ((files[kind], m.nodes_unavailable) for kind, m in found.items() if m.nodes_unavailable)
    return CountResult(
        board=board.name,
        model=files["result"],
        other=files.get("original"),
        source=sample.source,
        counts=found["result"].runs[-1],
        other_counts=found["original"].runs[-1] if "original" in found else None,
        nodes=node_instructions(found, graphs.get("original", graphs["result"]), graphs["result"]),
        versions=dict(emulator.versions),
        notes=tuple(f"{path}: instructions by node are not known: {why}" for path, why in problems),
    )
