"""pack-bits: store weights of fewer than 8 bits without a gap; the runtime unpacks them when it loads a session."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.bits import BYTE_BITS, pack, packed_bytes
from qcompiler.errors import QCompileError
from qcompiler.lowering import weight_of
from qcompiler.model.edit import add_initializer, clone, fresh_name, tensor_array, value_names
from qcompiler.plan import TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.levels import Levels
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State

MIN_OPSET = 11
"""Range begins here."""
LONGEST_INDEX = 14
"""Bits of the longest index into a table of levels; its table has 32 KiB while a session loads."""
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
                writer.replace(value, graph, entry)
                packed, saved = packed + 1, saved + gain
        writer.place()
        metrics = (Metric("packed", packed, "tensors"), Metric("saved", saved, "bytes"))
        report = PassReport(name=self.name, changed=bool(packed), metrics=metrics, skipped=tuple(skipped))
        return PassResult(replace(state, model=model) if packed else state, report)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the numbers of a stream are looked up several at a time.

    Attributes:
        num_bits: width of a number.
        group_bytes: the fewest bytes that hold whole numbers only.
        index_bits: width of an index into the table: the most numbers of a group, evenly, that make no long one.
    """

    num_bits: int

    @property
    def group_bytes(self) -> int:
        return math.lcm(self.num_bits, BYTE_BITS) // BYTE_BITS

    @property
    def index_bits(self) -> int:
        group = self.group_bytes * BYTE_BITS
        widths = range(self.num_bits, LONGEST_INDEX + 1, self.num_bits)
        return max(width for width in widths if group % width == 0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the smallest integers that the runtime multiplies, and that hold a group."""
        return np.dtype(np.int32 if self.group_bytes * BYTE_BITS < 32 else np.int64)


@dataclass(slots=True)
class _Writer:
    """Writes all unpacking at the start of the main graph, where graphs inside of it can read the results, too."""

    graph: ir.Graph
    taken: set[str]
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[bytes, ir.Value] = field(default_factory=dict)
    tables: dict[tuple[int, bytes], ir.Value] = field(default_factory=dict)

    def replace(self, value: ir.Value, home: ir.Graph, entry: TensorPlan) -> None:
        """Let an unpacked stream stand for a constant, under the constant's name."""
        tensor, name = value.const_value, value.name or ""
        if tensor is None or entry.spec is None:
            raise QCompileError(f"the codes of weight '{entry.name}' are no constant")
        shape, layout = tensor.shape.numpy(), _Layout(entry.spec.num_bits)
        levels, count = _levels_of(entry, layout.num_bits), int(tensor.size)
        compute = _lazy_stream(tensor, levels, layout.num_bits)
        stored = ir.Shape([packed_bytes(count, layout.num_bits)])
        stream = ir.LazyTensor(compute, ir.DataType.UINT8, stored, cache=False)
        packed = add_initializer(self.graph, self._name(), stream)
        found = self._node("Gather", self._table(layout, levels), self._indices(layout, packed, count))
        if count * layout.num_bits % (layout.group_bytes * BYTE_BITS):  # zeros behind the last number
            found = self._node("Reshape", found, self._constant(np.asarray([-1])))
            found = self._node("Slice", found, self._constant(np.asarray([0])), self._constant(np.asarray([count])))
        result = self._node("Reshape", found, self._constant(np.asarray(shape)))
        result.type, result.shape = ir.TensorType(ir.DataType.INT8), ir.Shape(shape)
        value.replace_all_uses_with(result)
        del home.initializers[name]
        result.name = name

    def place(self) -> None:
        """Put the nodes into the graph; to be called once, at the end."""
        if self.nodes:
            self.graph.insert_before(self.graph[0], self.nodes)

    def _indices(self, layout: _Layout, packed: ir.Value, count: int) -> ir.Value:
        """Return the indices into the table, in order: bytes, or fields of groups of bytes read as one integer."""
        size, dtype = layout.group_bytes, layout.dtype
        if size > 1:
            missing = -packed_bytes(count, layout.num_bits) % size
            if missing:
                packed = self._node("Concat", packed, self._constant(np.zeros(missing, np.uint8)), axis=0)
            packed = self._node("Reshape", packed, self._constant(np.asarray([-1, size])))
        numbers = self._node("Cast", packed, to=ir.DataType.from_numpy(dtype).value)
        if size > 1:
            bases = self._constant((1 << BYTE_BITS * np.arange(size)).astype(dtype).reshape(-1, 1))
            whole = self._node("MatMul", numbers, bases)
            numbers = self._fields(whole, layout.index_bits, size * BYTE_BITS // layout.index_bits, dtype)
        return numbers

    def _table(self, layout: _Layout, levels: Levels) -> ir.Value:
        """Return int8 of shape (2**index_bits, numbers of an index): the levels that every index stands for."""
        key = (layout.num_bits, levels.tobytes())
        if key not in self.tables:
            dtype, length = np.dtype(np.int32), layout.index_bits // layout.num_bits
            limits = (self._constant(np.asarray(n, dtype)) for n in (0, 1 << layout.index_bits, 1))
            every = self._node("Reshape", self._node("Range", *limits), self._constant(np.asarray([-1, 1])))
            numbers = self._fields(every, layout.num_bits, length, dtype)
            unused = 2**layout.num_bits - levels.size
            stored = self._constant(np.pad(levels, (0, unused), mode="edge"))
            self.tables[key] = self._node("Gather", stored, numbers)
        return self.tables[key]

    def _fields(self, whole: ir.Value, width: int, count: int, dtype: np.dtype[Any]) -> ir.Value:
        """Return the lowest ``count`` fields of ``width`` bits of every integer, along the last axis."""
        shifts = self._constant((1 << width * np.arange(count)).astype(dtype))
        shifted = self._node("Div", whole, shifts) if count > 1 else whole
        return self._node("Mod", shifted, self._constant(np.asarray(1 << width, dtype)))

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Return the output of a new node; equal names of both, and short ones, keep the file small."""
        made = ir.node(op_type, list(inputs), attributes=attributes or None, name=self._name())
        made.outputs[0].name = made.name
        self.nodes.append(made)
        return made.outputs[0]

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        if key not in self.constants:
            self.constants[key] = add_initializer(self.graph, self._name(), array)
        return self.constants[key]

    def _name(self) -> str:
        return fresh_name(self.taken, "u")


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
