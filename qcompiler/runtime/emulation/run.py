"""Running models on an emulated board, and reading what the counting plugin wrote about it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from qcompiler.counts import InstructionCounts
from qcompiler.errors import QCompileError
from qcompiler.model.child import OWN_GROUP
from qcompiler.model.probe import shorten
from qcompiler.runtime.emulation._guest import COUNTED_RUNS
from qcompiler.runtime.emulation.board import Board
from qcompiler.runtime.emulation.build import Emulator

_GUEST = Path(__file__).with_name("_guest.py")
TIMEOUT_S = 3600.0
MARKS = COUNTED_RUNS + 3
"""Marks of one model: one before the runs and one after each; then two around the run that is profiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedJob:
    """What to run.

    Attributes:
        models: kind -> model file, run in this order.
        counts: kind -> samples whose outputs are kept, as ``BOARD-KIND-00000.npz`` beside the samples.
        samples: folder of samples written by ``write_samples``.
    """

    models: Mapping[str, Path]
    counts: Mapping[str, int]
    samples: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedModel:
    """Instructions of one model.

    Attributes:
        runs: of each counted run.
        operators: (name, operator) of the nodes of the runtime's graph, in the order of execution.
        nodes: of each of them; empty where they could not be told apart.
        nodes_unavailable: why they could not; "" if they could.
    """

    runs: tuple[InstructionCounts, ...]
    operators: tuple[tuple[str, str], ...] = ()
    nodes: tuple[InstructionCounts, ...] = ()
    nodes_unavailable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedFindings:
    """What was counted, kind -> model; or why not, and which model it was ("" where it is not known)."""

    models: Mapping[str, CountedModel] = field(default_factory=dict)
    failure: str = ""
    culprit: str = ""


def run_emulated(emulator: Emulator, board: Board, job: EmulatedJob) -> EmulatedFindings:
    """Run models on a board, each counted whole and by node, and return what was found, a crash included."""
    counts, place = job.samples / f"{board.name}.counts", job.samples / f"{board.name}.json"
    document = {
        "board": board.name,
        "models": {kind: str(path.resolve()) for kind, path in job.models.items()},
        "counts": dict(job.counts),
        "samples": str(job.samples),
        "threads": 1,
    }
    place.write_text(json.dumps(document), encoding="utf-8")
    try:
        done = subprocess.run(
            emulator.command(board, ["-P", str(_GUEST), str(place)], counts),
            env=emulator.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            process_group=OWN_GROUP,
        )
    except subprocess.TimeoutExpired:
        return EmulatedFindings(failure=f"the emulation did not end within {TIMEOUT_S:.0f} s")
    entries = _entries(done.stdout)
    if done.returncode:
        return _failed(entries, done.returncode, done.stderr)
    profiles = {entry["kind"]: Path(entry["profile"]) for entry in entries if entry["stage"] == "ran"}
    return EmulatedFindings(models=read_counts(counts.read_text(encoding="ascii"), profiles))


def _entries(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # what a library prints is none of ours
    return found


def _failed(entries: Sequence[dict[str, Any]], code: int, stderr: str) -> EmulatedFindings:
    for entry in entries:
        if entry["stage"] == "failed":
            return EmulatedFindings(failure=shorten(str(entry["reason"])), culprit=str(entry["culprit"]))
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return EmulatedFindings(failure=f"the emulation ended with {how}: {shorten(last)}")


@dataclass(frozen=True, slots=True)
class _Reading:
    """The counters at one system call of the program."""

    mark: bool
    counts: InstructionCounts


def read_counts(text: str, profiles: Mapping[str, Path]) -> dict[str, CountedModel]:
    """Return the counts of every model.

    Args:
        text: what the plugin wrote.
        profiles: kind -> file of the runtime's profiler, in the order in which the models ran.

    Raises:
        QCompileError: the marks are not those of ``_guest``.
    """
    readings = [_reading(line) for line in text.splitlines()]
    marks = [index for index, reading in enumerate(readings) if reading.mark]
    if len(marks) != MARKS * len(profiles):
        raise QCompileError(f"{len(marks)} marks were counted for {len(profiles)} models, {MARKS} each were expected")
    found = {}
    for number, (kind, profile) in enumerate(profiles.items()):
        own = marks[MARKS * number : MARKS * (number + 1)]
        runs = [readings[i].counts for i in own[: COUNTED_RUNS + 1]]
        counted = tuple(difference(b, a) for a, b in pairwise(runs))
        profiled = [r.counts for r in readings[own[-2] : own[-1] + 1]]
        operators = _operators(json.loads(profile.read_text(encoding="utf-8")))
        nodes, problem = by_node(profiled, len(operators), counted[-1])
        found[kind] = CountedModel(runs=counted, operators=operators, nodes=nodes, nodes_unavailable=problem)
    return found


def _reading(line: str) -> _Reading:
    kind, *numbers = line.split()
    total, dot, matrix, widening, fmla = (int(n) for n in numbers)
    other = total - dot - matrix - widening - fmla
    counts = InstructionCounts(dot=dot, matrix=matrix, widening=widening, fmla=fmla, other=other)
    return _Reading(kind == "m", counts)


def _operators(events: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Return (name, operator) of every node in the last of the two profiled runs."""
    suffix = "_kernel_time"
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(suffix)]
    last = nodes[len(nodes) // 2 :]
    return tuple((e["name"].removesuffix(suffix), e["args"].get("op_name", "")) for e in last)


CLOCKS_BEFORE, CLOCKS_AFTER = 3, 5
"""How often ONNX Runtime's profiler reads the clock in a run before its first node and after its last one."""
MULTIPLIES_OUTSIDE = 0.01
"""The share of vector multiplies that may lie outside of all nodes; more means that the nodes were not found."""


def by_node(
    readings: Sequence[InstructionCounts], nodes: int, whole: InstructionCounts
) -> tuple[tuple[InstructionCounts, ...], str]:
    """Return the instructions of every node of a profiled run, in the order of execution, or why they are not known.

    The profiler reads the clock when a node starts and when it ends. Its own instructions are taken off every node
    in equal parts, so that nodes and what lies around them add up to a run without profiler.

    Args:
        readings: at the start of the run, at every reading of the clock, at the end.
        nodes: how many ran.
        whole: a run without profiler.
    """
    if not nodes or len(readings) != 2 * nodes + CLOCKS_BEFORE + CLOCKS_AFTER + 2:
        return (), f"{len(readings) - 2} readings of the clock do not fit {nodes} nodes"
    inner = readings[1 + CLOCKS_BEFORE : len(readings) - 1 - CLOCKS_AFTER]
    found = [difference(end, start) for start, end in zip(inner[::2], inner[1::2], strict=True)]
    between = sum(b.total - a.total for a, b in zip(inner[1::2], inner[2::2], strict=False))
    run = difference(readings[-1], readings[0])
    if _multiplies(run) - sum(_multiplies(n) for n in found) > MULTIPLIES_OUTSIDE * _multiplies(run):
        return (), "vector multiplies were counted outside of the nodes"
    own = max(0, (run.total - whole.total - between) // nodes)
    return tuple(replace(n, other=max(0, n.other - own)) for n in found), ""


def _multiplies(counts: InstructionCounts) -> int:
    return counts.total - counts.other


def difference(end: InstructionCounts, start: InstructionCounts) -> InstructionCounts:
    """Return what was counted between two readings."""
    names = [f.name for f in fields(InstructionCounts)]
    return InstructionCounts(**{name: getattr(end, name) - getattr(start, name) for name in names})
