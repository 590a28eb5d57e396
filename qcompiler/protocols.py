"""The two things third parties write, a pass and a target, and the typed tables targets are made of."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from qcompiler.plan import Precision, QuantSpec
from qcompiler.records import PassReport
from qcompiler.state import Context, Fact, State


class PassKind(enum.StrEnum):
    """What a pass may touch; the pipeline checks it."""

    REWRITE = "rewrite"
    """Float graph to equivalent float graph. Checked: outputs agree on sample inputs."""
    PLAN = "plan"
    """Changes only the plan and the statistics. Checked: the graph's fingerprint is unchanged."""
    LOWER = "lower"
    """Writes the plan into the graph. Checked: valid ONNX, and the constants decode to the plan's values."""


@dataclass(frozen=True, slots=True, eq=False)
class PassResult:
    """The new state and what was done."""

    state: State
    report: PassReport


@runtime_checkable
class Pass(Protocol):
    """One step of the compiler. Implementations are frozen dataclasses whose fields are their options.

    Class attributes:
        requires / provides / invalidates: facts; the order of passes is checked before anything runs.
    """

    requires: ClassVar[frozenset[Fact]]
    provides: ClassVar[frozenset[Fact]]
    invalidates: ClassVar[frozenset[Fact]]

    @property
    def name(self) -> str:
        """Return the name on the command line, in kebab case; usually a class attribute."""
        ...

    @property
    def kind(self) -> PassKind:
        """Return what the pass may touch; usually a class attribute."""
        ...

    def run(self, state: State, context: Context) -> PassResult:
        """Return a new state and a report; never edit the given state."""
        ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a target does not run a node in the wanted precision."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRule:
    """One row of a target's capability table: an operator that its runtime runs on quantized data.

    Attributes:
        op_type: ONNX operator type.
        precision: INTEGER (an integer kernel) or MOVE (data only moves; input and output share one scale).
        weights: grids of constant operands that fuse; empty where the operator has none.
        activations: grids of the inputs and the output that fuse.
        output: the output must be quantized for the runtime to fuse the node.
        runtime_op: the operator this becomes in the runtime's optimized graph.
        needs: a named condition beyond the grids, checked by the placement pass ("" = none).
    """

    op_type: str
    precision: Precision
    weights: tuple[QuantSpec, ...] = ()
    activations: tuple[QuantSpec, ...] = ()
    output: bool = True
    runtime_op: str = ""
    needs: str = ""


@dataclass(frozen=True, slots=True)
class MatMulForm:
    """A way to multiply by a constant matrix.

    Attributes:
        precision: FLOAT, INTEGER (activations on a fixed grid), DYNAMIC (on one found at run time) or BLOCKWISE.
        num_bits: width in which the runtime holds a weight of BLOCKWISE: 2, 4 or 8.
        block_size: inputs that share a scale; 0 is one scale per output.
        accuracy_level: of the runtime's MatMulNBits: 0 computes in float, 4 in integers.
    """

    precision: Precision
    num_bits: int = 8
    block_size: int = 0
    accuracy_level: int = 0

    def describe(self) -> str:
        """Return a short name, such as ``dynamic`` or ``blockwise 4 bits, blocks of 32, accuracy level 4``."""
        if self.precision is not Precision.BLOCKWISE:
            return str(self.precision)
        level = f"accuracy level {self.accuracy_level}"
        return f"{self.precision} {self.num_bits} bits, blocks of {self.block_size}, {level}"


@dataclass(frozen=True, slots=True)
class MatMulCost:
    """One measured point of a target: what a form costs of what the float product costs.

    Attributes:
        form: the way to multiply.
        rows: rows of the left operand.
        weights: weights of the matrix.
        ratio: cost over that of the float product, in the quantity that the target is measured in.
    """

    form: MatMulForm
    rows: int
    weights: int
    ratio: float


@runtime_checkable
class Target(Protocol):
    """Hardware and its runtime. Implementations are frozen dataclasses; ``profile`` is the part after ':'.

    Class attributes:
        weight_bits / activation_bits: widths of codes that a recipe may ask for; a row of the table may take fewer.
        runtime_name: what runs the result in the gate: "onnxruntime", "openvino" or "qnn"; "" for a target that
            is only a table, which ``qcompile lint`` reads and nothing is compiled for.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    profiles: ClassVar[tuple[str, ...]]
    runtime_name: ClassVar[str]
    weight_bits: ClassVar[frozenset[int]]
    activation_bits: ClassVar[frozenset[int]]

    @property
    def full_name(self) -> str:
        """Return the name with its profile, such as ``arm:cortex-a76``."""
        ...

    @property
    def executes_here(self) -> bool:
        """Return True if this machine is the target, so that its latency can be measured."""
        ...

    def rules(self) -> Sequence[OpRule]:
        """Return the capability table."""
        ...

    def legalize(self, op_type: str, wanted: Precision, weights: QuantSpec | None) -> OpRule | Refusal:
        """Return the rule by which a node runs in the wanted precision, or why it does not."""
        ...

    def lower_passes(self) -> tuple[str, ...]:
        """Return the names of the passes that write a plan into a graph for this target."""
        ...

    def artifacts(self) -> tuple[str, ...]:
        """Return the files written beside ``model.onnx``, such as ``model.ort``."""
        ...
