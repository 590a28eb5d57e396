"""pack-bits: store weights of fewer than 8 bits without a gap; the runtime unpacks them when it loads a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.codec.bits import BYTE_BITS, pack, packed_bytes
from qcompiler.errors import QCompileError
from qcompiler.lowering import weight_of
from qcompiler.model.edit import clone, tensor_array, value_names
from qcompiler.plan import TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.levels import Levels
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State
from qcompiler.unpacking.writer import MIN_OPSET, Unpacker

OVERHEAD_BYTES = 320
"""What unpacking one tensor costs in the file: up to seven nodes with their names, and a shape."""

STATED = ("mixed", "uniform")
"""Allocations in which the user states the bits a weight may take: kept to even where unpacking costs more bytes."""


@dataclass(frozen=True, slots=True)
class PackBits:
    """Replaces int8 codes of a plan below 8 bits by the numbers of their levels, packed.

    ONNX Runtime computes nodes whose inputs are all constant when it loads a session, before it looks for
    quantized operators: standard operators look up whole bytes (for widths that divide 8) or pairs of numbers and
    more (cut out of groups of whole bytes) in a table of levels, which is itself computed from the few levels. The
    session then holds the int8 weights that it would hold without this pass, and runs the same kernels on them.
    """

    name: ClassVar[str] = "pack-bits"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph that holds packed streams instead of codes."""
        model = clone(state.model)
        writer = _Writer(model.graph, value_names(model))
        known = model.opset_imports.get("", 0) >= MIN_OPSET
        asked = context.recipe.allocation in STATED
        packed, saved, skipped = 0, 0, []
        for graph in model.graphs():
            for value in tuple(graph.initializers.values()):
                entry = state.plan.tensors.get(weight_of(value))
                tensor = value.const_value
                if entry is None or entry.spec is None or tensor is None or entry.spec.num_bits >= BYTE_BITS:
                    continue
                gain = int(tensor.size) - packed_bytes(int(tensor.size), entry.spec.num_bits)
                if not known or not (asked or gain > OVERHEAD_BYTES):
                    why = "unpacking takes more bytes than it saves" if known else f"needs opset {MIN_OPSET} or newer"
                    skipped.append(Skip(entry.name, f"stored in whole bytes: {why}"))
                    continue
                writer.replace(value, entry)
                packed, saved = packed + 1, saved + gain
        writer.place()
        metrics = (Metric("packed", packed, "tensors"), Metric("saved", saved, "bytes"))
        report = PassReport(name=self.name, changed=bool(packed), metrics=metrics, skipped=tuple(skipped))
        return PassResult(replace(state, model=model) if packed else state, report)


@dataclass(slots=True)
class _Writer(Unpacker):
    """Unpacks the numbers of levels."""

    def replace(self, value: ir.Value, entry: TensorPlan) -> None:
        """Let an unpacked stream stand for a constant, under the constant's name."""
        tensor = value.const_value
        if tensor is None or entry.spec is None:
            raise QCompileError(f"the codes of weight '{entry.name}' are no constant")
        width = entry.spec.num_bits
        levels, count = _levels_of(entry, width), int(tensor.size)
        shape = ir.Shape([packed_bytes(count, width)])
        stream = ir.LazyTensor(_lazy_stream(tensor, levels, width), ir.DataType.UINT8, shape, cache=False)
        self.stand_for(value, self.levels(self.stored(stream), levels, width, count))


def _levels_of(entry: TensorPlan, num_bits: int) -> Levels:
    """Return the planned levels of a weight.

    Raises:
        QCompileError: there are none, or too many to number, or the planned codes are others.
    """
    levels = entry.levels
    if levels is None:
        raise QCompileError(f"weight '{entry.name}' is planned in {num_bits} bits without levels")
    if levels.size > 2**num_bits:
        raise QCompileError(f"weight '{entry.name}' has {levels.size} levels, more than {num_bits} bits can number")
    if entry.codes is not None and not np.isin(entry.codes, levels).all():
        raise QCompileError(f"weight '{entry.name}' has a code that is none of its levels")
    return levels


def _lazy_stream(tensor: ir.TensorProtocol, levels: Levels, num_bits: int) -> Callable[[], ir.TensorProtocol]:
    """Return a function that packs the numbers of a tensor's levels when they are needed."""
    numbers = np.zeros(256, np.uint8)
    numbers[levels.view(np.uint8)] = np.arange(levels.size)

    def compute() -> ir.TensorProtocol:
        codes = np.ascontiguousarray(tensor_array(tensor)).view(np.uint8)
        return ir.tensor(pack(numbers[codes], num_bits))

    return compute
