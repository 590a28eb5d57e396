"""Searches that do what a test says: third-party passes, as an installed package would bring them.

``spoil`` widens every range, so that the first result leaves something to find; ``mend`` finds it again, one value
after the other, and keeps each as a finished part. Environment variables say when it waits, because an option would
make it another search: ``SEARCH_HOLD`` parts are done, then it waits until its budget is spent, or for ever if
``SEARCH_DEAF`` is set; every part that it computed, and then the wait, is a line of the file ``SEARCH_LOG``.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np

from qcompiler import registry
from qcompiler.plan import Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import PassReport
from qcompiler.state import Context, Fact, State

FACTOR = np.float32(8)
WAITING = "waiting"


@dataclass(frozen=True)
class _Search:
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.RANGES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    improving: ClassVar[bool] = True

    def _done(self, state: State, *tensors: TensorPlan, notes: tuple[str, ...] = ()) -> PassResult:
        report = PassReport(name=type(self).name, changed=bool(tensors), notes=notes)
        return PassResult(replace(state, plan=state.plan.with_tensors(*tensors)), report)


@dataclass(frozen=True)
class Spoil(_Search):
    """Ordinary pass: every range too wide."""

    name: ClassVar[str] = "spoil"
    improving: ClassVar[bool] = False

    def run(self, state: State, context: Context) -> PassResult:
        return self._done(state, *(replace(t, scale=t.scale * FACTOR) for t in activations(state)))


@dataclass(frozen=True)
class Linger(Spoil):
    """Ordinary pass: says that it waits, and never ends."""

    name: ClassVar[str] = "linger"

    def run(self, state: State, context: Context) -> PassResult:
        log(WAITING)
        while True:
            time.sleep(0.01)


@dataclass(frozen=True)
class Mend(_Search):
    """Takes back what ``spoil`` did."""

    name: ClassVar[str] = "mend"

    def run(self, state: State, context: Context) -> PassResult:
        found = []
        for tensor in activations(state):
            kept = context.checkpoint.load(tensor.name)
            if kept is None:
                wait_if_told(len(found), context)
                if context.budget.spent():
                    break
                kept = {"scale": tensor.scale / FACTOR}
                log(tensor.name)
                context.checkpoint.save(tensor.name, kept)
            found.append(replace(tensor, scale=kept["scale"], reason="mended"))
        return self._done(state, *found)


@dataclass(frozen=True)
class Worsen(_Search):
    """Makes everything worse."""

    name: ClassVar[str] = "worsen"

    def run(self, state: State, context: Context) -> PassResult:
        return self._done(state, *(replace(t, scale=t.scale * 8) for t in activations(state)))


@dataclass(frozen=True)
class Rest(_Search):
    """Has nothing to do."""

    name: ClassVar[str] = "rest"

    def run(self, state: State, context: Context) -> PassResult:
        return self._done(state, notes=("all is well",))


@dataclass(frozen=True)
class Fail(_Search):
    """Fails as it is told."""

    name: ClassVar[str] = "fail"
    memory: bool = False

    def run(self, state: State, context: Context) -> PassResult:
        raise MemoryError if self.memory else ZeroDivisionError("no way out")


SEARCHES = (Spoil, Linger, Mend, Worsen, Rest, Fail)


def activations(state: State) -> list[TensorPlan]:
    return [t for t in state.plan.tensors.values() if t.role is Role.ACTIVATION and t.scale is not None]


def log(line: str) -> None:
    if place := os.environ.get("SEARCH_LOG"):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def wait_if_told(done: int, context: Context) -> None:
    if os.environ.get("SEARCH_HOLD") != str(done):
        return
    log(WAITING)
    while os.environ.get("SEARCH_DEAF") or not context.budget.spent():
        time.sleep(0.01)


def install(site: Path) -> None:
    """Lay the searches out as an installed distribution."""
    info = site / "searches-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: searches\nVersion: 1\n", encoding="utf-8")
    lines = [f"{s.name} = tests.searches:{s.__name__}" for s in SEARCHES]
    (info / "entry_points.txt").write_text("\n".join(["[qcompiler.passes]", *lines, ""]), encoding="utf-8")


def provide(monkeypatch) -> None:
    """Let the searches be installed in this process."""
    points = tuple(EntryPoint(s.name, f"tests.searches:{s.__name__}", registry.PASS_GROUP) for s in SEARCHES)
    monkeypatch.setattr(registry, "_entry_points", lambda group, path: points if group == registry.PASS_GROUP else ())
