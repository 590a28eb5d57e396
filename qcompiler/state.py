"""What flows through the passes: an immutable state, the facts known about it, and the context around it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.budget import NO_CHECKPOINT, Budget, Checkpoint
from qcompiler.plan import CompressionPlan
from qcompiler.quant.frontier import BitSearch
from qcompiler.quant.histogram import TensorStatistics
from qcompiler.quant.sparsity import SparsitySearch
from qcompiler.recipe import Recipe
from qcompiler.row_search import RowSearch

if TYPE_CHECKING:
    from qcompiler.data import Dataset
    from qcompiler.protocols import Target


class Fact(enum.StrEnum):
    """Something that is known to hold for a state; passes declare which they need, make and destroy."""

    MOMENTS = "moments"
    """Per-channel mean and deviation of some activations are known from BatchNorm statistics."""
    PLACEMENT = "placement"
    """Every node has a NodePlan and the values to be quantized are known."""
    STATISTICS = "statistics"
    """Activations have been observed on calibration data."""
    RANGES = "ranges"
    """Every activation that is to be quantized has a scale."""
    WEIGHT_SCALES = "weight_scales"
    """Every weight that is to be quantized has a scale."""
    LOWERED = "lowered"
    """The plan is written into the graph."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMoments:
    """Mean and standard deviation of one activation per channel (axis 1), float64 arrays of shape (channels,)."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """The model, the decisions taken so far and what is known. Never edited, always replaced.

    Attributes:
        bit_search: what is known of the choice of widths; None where none was made.
        sparsity_search: what is known of the choice of sparsities; None where none was made.
        row_searches: the tables whose bytes nobody prescribed, each at any number of them.
    """

    model: ir.Model
    plan: CompressionPlan
    statistics: Mapping[str, TensorStatistics] = field(default_factory=dict)
    moments: Mapping[str, ChannelMoments] = field(default_factory=dict)
    facts: frozenset[Fact] = frozenset()
    bit_search: BitSearch | None = None
    sparsity_search: SparsitySearch | None = None
    row_searches: tuple[RowSearch, ...] = ()


Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` by long loops."""


def no_progress(what: str, done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """What a pass may look at beside the state.

    Attributes:
        target: the hardware and runtime that is compiled for.
        recipe: what the user asked.
        calibration: samples to calibrate on; None without data.
        acceptance: samples to accept a search result on, disjoint from ``calibration`` and from the
            samples the gate verifies with; None without data.
        trial: returns the SQNR in dB that a state would reach on the acceptance samples if it were finished
            now; None without data or where no search is wanted.
        closeness: as ``trial``, but class scores count by their probabilities; None where ``trial`` is.
        acceptable: returns whether a state, finished now, would hold the accuracy floors by what is measured on
            samples the gate does not use; None where ``trial`` is.
        size: returns the bytes of the file that a state, finished now, would become.
        progress: to be told how far a long loop has come.
        budget: what a long search may use; it polls ``budget.spent()`` and then returns the best it has.
        checkpoint: keeps results of finished parts of a long search, so that it resumes where it was stopped.
    """

    target: Target
    recipe: Recipe
    calibration: Dataset | None = None
    acceptance: Dataset | None = None
    trial: Callable[[State], float] | None = None
    closeness: Callable[[State], float] | None = None
    acceptable: Callable[[State], bool] | None = None
    size: Callable[[State], int] | None = None
    progress: Progress = no_progress
    budget: Budget = field(default_factory=Budget)
    checkpoint: Checkpoint = NO_CHECKPOINT
