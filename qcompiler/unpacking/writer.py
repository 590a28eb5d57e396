"""Operators that the runtime computes once, when it loads a session: from stored bytes to the codes of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.bits import BYTE_BITS, packed_bytes
from qcompiler.model.edit import add_initializer, fresh_name
from qcompiler.quant.levels import Levels

_Attribute: TypeAlias = int | Sequence[int] | ir.TensorProtocol
MIN_OPSET = 11
"""Range, CumSum and ScatterElements begin here."""
SPLIT_BY_INPUT = 13
"""From this opset on Split reads the lengths of its parts from an input."""
LONGEST_INDEX = 14
"""Bits of the longest index into a table of levels; its table has 32 KiB while a session loads."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the numbers of a stream are looked up several at a time.

    Attributes:
        num_bits: width of a number.
        group_bytes: the fewest bytes that hold whole numbers only.
        index_bits: width of an index into the table: the most numbers of a group, evenly, that make no long one.
    """

    num_bits: int

    @property
    def group_bytes(self) -> int:
        """Return the fewest bytes that hold whole numbers only."""
        return math.lcm(self.num_bits, BYTE_BITS) // BYTE_BITS

    @property
    def index_bits(self) -> int:
        """Return the width of an index into the table."""
        group = self.group_bytes * BYTE_BITS
        widths = range(self.num_bits, LONGEST_INDEX + 1, self.num_bits)
        return max(width for width in widths if group % width == 0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the smallest integers that the runtime multiplies, and that hold a group."""
        return np.dtype(np.int32 if self.group_bytes * BYTE_BITS < 32 else np.int64)


@dataclass(slots=True)
class Unpacker:
    """Writes all unpacking at the start of the main graph, where graphs inside of it can read the results, too."""

    graph: ir.Graph
    taken: set[str]
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[bytes, ir.Value] = field(default_factory=dict)
    tables: dict[tuple[str | int, bytes], ir.Value] = field(default_factory=dict)

    def stand_for(self, value: ir.Value, codes: ir.Value) -> None:
        """Let computed codes stand for a constant, under its name and in its shape."""
        tensor, name, home = value.const_value, value.name or "", value.graph
        shape = tensor.shape.numpy() if tensor is not None else ()
        result = self.node("Reshape", codes, self.constant(np.asarray(shape, np.int64)))
        result.type, result.shape = ir.TensorType(ir.DataType.INT8), ir.Shape(shape)
        value.replace_all_uses_with(result)
        if isinstance(home, ir.Graph):
            del home.initializers[name]
        result.name = name

    def stored(self, content: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
        """Return a new constant that no other tensor shares."""
        return add_initializer(self.graph, self._name(), content)

    def levels(self, packed: ir.Value, levels: Levels, num_bits: int, count: int) -> ir.Value:
        """Return the levels whose numbers are packed: int8 of shape (count,), or more axes if none is left over.

        Args:
            packed: uint8 of shape (ceil(count * num_bits / 8),), by ``codec.bits.pack``.
            levels: int8 of shape (at most 2**num_bits,).
            num_bits: width of a number, 1 to 7.
            count: how many numbers there are.
        """
        layout = Layout(num_bits)
        found = self.node("Gather", self._table(layout, levels), self._indices(layout, packed, count))
        if count * num_bits % (layout.group_bytes * BYTE_BITS):  # zeros behind the last number
            found = self.node("Reshape", found, self.constant(np.asarray([-1])))
            found = self.node("Slice", found, self.constant(np.asarray([0])), self.constant(np.asarray([count])))
        return found

    def split(self, flat: ir.Value, lengths: Sequence[int], opset: int) -> Sequence[ir.Value]:
        """Return consecutive parts of a value of one axis.

        Args:
            flat: of shape (sum of lengths,).
            lengths: of the parts.
            opset: of the model, which decides how a Split is told.
        """
        if len(lengths) == 1:
            return (flat,)
        if opset >= SPLIT_BY_INPUT:
            return self.outputs(len(lengths), "Split", flat, self.constant(np.asarray(lengths)))
        return self.outputs(len(lengths), "Split", flat, split=lengths)

    def once(self, key: tuple[str, bytes], make: Callable[[], ir.Value]) -> ir.Value:
        """Return a value that is made on the first request for its key, and is the same for all others."""
        if key not in self.tables:
            self.tables[key] = make()
        return self.tables[key]

    def place(self) -> None:
        """Put the nodes into the graph; to be called once, at the end."""
        if self.nodes:
            self.graph.insert_before(self.graph[0], self.nodes)

    def _indices(self, layout: Layout, packed: ir.Value, count: int) -> ir.Value:
        """Return the indices into the table, in order: bytes, or fields of groups of bytes read as one integer."""
        size, dtype = layout.group_bytes, layout.dtype
        if size > 1:
            missing = -packed_bytes(count, layout.num_bits) % size
            if missing:
                packed = self.node("Concat", packed, self.constant(np.zeros(missing, np.uint8)), axis=0)
            packed = self.node("Reshape", packed, self.constant(np.asarray([-1, size])))
        numbers = self.node("Cast", packed, to=ir.DataType.from_numpy(dtype).value)
        if size > 1:
            bases = self.constant((1 << BYTE_BITS * np.arange(size)).astype(dtype).reshape(-1, 1))
            whole = self.node("MatMul", numbers, bases)
            numbers = self.fields(whole, layout.index_bits, size * BYTE_BITS // layout.index_bits, dtype)
        return numbers

    def _table(self, layout: Layout, levels: Levels) -> ir.Value:
        """Return int8 of shape (2**index_bits, numbers of an index): the levels that every index stands for."""
        key = (layout.num_bits, levels.tobytes())
        if key not in self.tables:
            dtype, length = np.dtype(np.int32), layout.index_bits // layout.num_bits
            limits = (self.constant(np.asarray(n, dtype)) for n in (0, 1 << layout.index_bits, 1))
            every = self.node("Reshape", self.node("Range", *limits), self.constant(np.asarray([-1, 1])))
            numbers = self.fields(every, layout.num_bits, length, dtype)
            unused = 2**layout.num_bits - levels.size
            stored = self.constant(np.pad(levels, (0, unused), mode="edge"))
            self.tables[key] = self.node("Gather", stored, numbers)
        return self.tables[key]

    def fields(self, whole: ir.Value, width: int, count: int, dtype: np.dtype[Any]) -> ir.Value:
        """Return the lowest ``count`` fields of ``width`` bits of every integer, along the last axis."""
        shifts = self.constant((1 << width * np.arange(count)).astype(dtype))
        shifted = self.node("Div", whole, shifts) if count > 1 else whole
        return self.node("Mod", shifted, self.constant(np.asarray(1 << width, dtype)))

    def node(self, op_type: str, *inputs: ir.Value, **attributes: _Attribute) -> ir.Value:
        """Return the output of a new node; equal names of both, and short ones, keep the file small."""
        return self.outputs(1, op_type, *inputs, **attributes)[0]

    def outputs(self, count: int, op_type: str, *inputs: ir.Value, **attributes: _Attribute) -> Sequence[ir.Value]:
        """Return the outputs of a new node, of which the first has its name."""
        name = self._name()
        made = ir.node(op_type, list(inputs), attributes=attributes or None, name=name, num_outputs=count)
        for number, value in enumerate(made.outputs):
            value.name = self._name() if number else name
        self.nodes.append(made)
        return made.outputs

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Return a constant; equal ones are stored once."""
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        if key not in self.constants:
            self.constants[key] = add_initializer(self.graph, self._name(), array)
        return self.constants[key]

    def _name(self) -> str:
        return fresh_name(self.taken, "u")
