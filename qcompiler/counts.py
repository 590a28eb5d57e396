"""What emulated boards ran, as data: instructions by class and by node, and how outputs agree. No time is in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Agreement = Literal["identical", "float rounding", "requantized float", "differs"]
"""How an output on a board compares with this machine's; ``EmulatedOutput`` says what each means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionCounts:
    """Instructions that an emulated processor ran, by class. A count is no time, and none is derived from it.

    Attributes:
        dot: 8-bit dot products (SDOT, UDOT, USDOT).
        matrix: 8-bit matrix products (SMMLA, UMMLA, USMMLA).
        widening: widening integer multiplies (SMULL, SMLAL, UMULL, UMLAL and their subtracting forms).
        fmla: vector multiply-adds in floating point.
        other: everything else.
    """

    dot: int = 0
    matrix: int = 0
    widening: int = 0
    fmla: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All instructions."""
        return self.dot + self.matrix + self.widening + self.fmla + self.other

    def plus(self, more: InstructionCounts) -> InstructionCounts:
        """Return the sum, class by class."""
        return InstructionCounts(
            dot=self.dot + more.dot,
            matrix=self.matrix + more.matrix,
            widening=self.widening + more.widening,
            fmla=self.fmla + more.fmla,
            other=self.other + more.other,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInstructions:
    """Instructions (emulated) of one original node, before and after, per run; None where it does not run."""

    name: str
    op_type: str
    before: InstructionCounts | None
    after: InstructionCounts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedOutput:
    """One output on an emulated board against the same file's output on this machine.

    Attributes:
        agreement: "identical" (every bit), "float rounding" (within 1e-5 of the largest value), "requantized
            float" (a last bit of a float part decided how a value was rounded to an integer), or "differs".
        max_relative: largest absolute difference over the largest absolute value.
    """

    name: str
    agreement: Agreement
    max_relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedRun:
    """What the original and the result did on one emulated board.

    Attributes:
        board: the profile of the ``arm`` target that the board stands for.
        kernels: the 8-bit multiply instructions expected there: "widening", "dot" or "matrix".
        samples: how many samples of the result were compared with this machine.
        outputs: of the result.
        float_nodes: compute nodes of the result that run in float.
        original / result: instructions of one run.
        spread: largest difference between two runs of the same model, as a share of the count.
        nodes: by original node, the most expensive first; what the runtime added is one row.
        versions: of qemu and of what ran in it.
        notes: what could not be counted, and why.
    """

    board: str
    kernels: str
    samples: int
    outputs: tuple[EmulatedOutput, ...]
    float_nodes: tuple[str, ...]
    original: InstructionCounts
    result: InstructionCounts
    spread: float
    nodes: tuple[NodeInstructions, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Instructions of the result over those of the original."""
        return self.result.total / self.original.total
