"""What one call of ``compile_model`` works on, for all its targets; and what a search of it depends on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ParamSpec, TypeVar

from qcompiler.budget import Budget, Checkpoint
from qcompiler.model.load import LoadedModel
from qcompiler.protocols import Target
from qcompiler.recipe import Recipe
from qcompiler.records import PassReport
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.runtime.machine import versions
from qcompiler.samples import Samples
from qcompiler.state import Progress, State

T = TypeVar("T")
P = ParamSpec("P")

SEARCH_SUFFIX = ".search"
"""What the folder of a search is called: as the result, with this behind it."""

_IRRELEVANT = frozenset(
    ("targets", "max_time_s", "max_memory_bytes", "dump_after", "require_data", "allow_unchanged", "verify")
)
"""What a recipe may say without any influence on what a search finds, apart from when it ends."""

_SEARCHING = ("scipy", "torch")
"""Packages that searches compute with, and nothing else does."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One model, what is asked of it, and what was found out that all targets share."""

    path: Path
    loaded: LoadedModel
    samples: Samples
    recipe: Recipe
    command: tuple[str, ...]
    progress: Progress
    load_seconds: float
    targets: tuple[Target, ...] = ()
    emulator: Emulator | None = None
    budget: Budget = field(default_factory=Budget)
    decided: dict[str, tuple[State, tuple[PassReport, ...]]] = field(default_factory=dict)
    """Target -> what was decided for it, or for an earlier target that places the model alike."""

    def checkpoint(self, target: Target, folder: Path) -> Checkpoint:
        """Return what keeps the finished parts of the search for a target, beside the folder of its result."""
        place = folder.with_name(folder.name + SEARCH_SUFFIX)
        return Checkpoint(place, lambda: self._fingerprint(target))

    def _fingerprint(self, target: Target) -> str:
        """Return everything that a search depends on before its first pass, as text."""
        data = self.samples.facts
        document = {
            "model": self.loaded.facts.sha256,
            "target": target.full_name,
            "recipe": {k: v for k, v in self.recipe.to_json().items() if k not in _IRRELEVANT},
            "data": None if data is None else [data.fingerprint, data.calibration, data.acceptance],
            "versions": {**versions(), **{name: _version(name) for name in _SEARCHING}},
        }
        return json.dumps(document, sort_keys=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@dataclass(slots=True)
class Stopwatch:
    """Wall time by stage, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, stage: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do some work and add its wall time to a stage."""
        started = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
