"""pack-embeddings: look rows up in their codes, and decode only the rows that are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.bits import pack
from qcompiler.codec.planes import row_ranks
from qcompiler.errors import QCompileError
from qcompiler.lookups import looks_up_rows
from qcompiler.model.edit import add_initializer, all_nodes, clone, drop_unused, fresh_name, take_over, value_names
from qcompiler.plan import Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.rows import GROUP
from qcompiler.quant.transform import LARGEST, TRANSFORM_BITS
from qcompiler.records import Metric, PassReport
from qcompiler.row_codes import RowCodes, RowKind
from qcompiler.state import Context, Fact, State
from qcompiler.unpacking.writer import Unpacker

CONTRIB = "com.microsoft"
UNSQUEEZE_INPUT_OPSET = 13
"""From here on Unsqueeze takes its axes as an input."""


@dataclass(frozen=True, slots=True)
class PackEmbeddings:
    """Replaces every Gather of a planned table by operators that decode the rows it asks for.

    Indices go through one map to the order of rows by bits (where all rows have the same number, there is none).
    Every plane is a table of bytes that holds only the rows that have it, and behind them one row of zeros for the
    others; a byte is looked up in 256 vectors of 8 numbers, the planes are added, multiplied by the transform where
    there is one, scaled, and shifted by the mean row.
    Grids are one GatherBlockQuantized and an offset per row. All of it follows the indices, so that the runtime cannot
    fold it into a table of floats, and what indices out of range do is what the first Gather does with them.

    Other readers of the table get all rows, decoded from constants: the runtime does that when it loads a session.
    """

    name: ClassVar[str] = "pack-embeddings"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which planned tables are stored in codes."""
        planned = {t.name: t for t in state.plan.tensors.values() if t.role is Role.TABLE and t.rows is not None}
        if not planned:
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        writers = _Writers(model, value_names(model))
        lookups = 0
        for node, graph in all_nodes(model):
            value = node.inputs[0] if node.op_type == "Gather" and node.inputs else None
            entry = planned.get(value.name or "") if value is not None else None
            indices = node.inputs[1] if entry is not None else None
            if entry is not None and indices is not None and looks_up_rows(node):
                take_over(node, writers.of(entry).look_up(graph, node, indices))
                lookups += 1
        for name, entry in planned.items():
            value = model.graph.initializers.get(name)
            if value is not None and value.uses():
                value.replace_all_uses_with(writers.of(entry).all_rows(value))
        writers.place()
        drop_unused(model)
        stored = sum(t.rows.stored_bytes for t in planned.values() if t.rows is not None)
        metrics = (Metric("lookups", lookups, "nodes"), Metric("stored", stored, "bytes"))
        return PassResult(
            replace(state, model=model), PassReport(name=self.name, changed=bool(lookups), metrics=metrics)
        )


@dataclass(slots=True)
class _Writers:
    """One writer per table, so that all that look rows up in it share its constants."""

    model: ir.Model
    taken: set[str]
    made: dict[str, _Writer] = field(default_factory=dict)

    def of(self, entry: TensorPlan) -> _Writer:
        if entry.rows is None:
            raise QCompileError(f"table '{entry.name}' is planned without codes")
        if entry.name not in self.made:
            if entry.rows.kind is RowKind.GRID:
                self.model.opset_imports.setdefault(CONTRIB, 1)
            opset = self.model.opset_imports.get("", 1)
            self.made[entry.name] = _Writer(self.model.graph, entry.name, entry.rows, self.taken, opset)
        return self.made[entry.name]

    def place(self) -> None:
        """Put what unpacks transforms before everything that reads it; to be called once, at the end."""
        for writer in self.made.values():
            if writer.unpacker is not None:
                writer.unpacker.place()


@dataclass(slots=True)
class _Writer:
    """Writes what decodes the rows of one table; its constants stand in the main graph."""

    graph: ir.Graph
    table: str
    rows: RowCodes
    taken: set[str]
    opset: int
    constants: dict[str, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    unpacker: Unpacker | None = None
    transform: ir.Value | None = None

    def look_up(self, graph: ir.Graph, node: ir.Node, indices: ir.Value) -> ir.Value:
        """Return the rows that indices ask for, decoded before a node."""
        self.nodes = []
        rank = None if indices.shape is None else len(indices.shape)
        flat = indices if rank else self._node("Reshape", indices, self._constant("flat", np.asarray([-1])))
        rows = self._decoded(flat, rank or 1)
        if not rank:
            shape = self._node("Shape", indices)
            wanted = self._node("Concat", shape, self._constant("width", np.asarray([self.rows.columns])), axis=0)
            rows = self._node("Reshape", rows, wanted)
        graph.insert_before(node, self.nodes)
        return rows

    def all_rows(self, value: ir.Value) -> ir.Value:
        """Return the whole table, decoded from constants at the start of the main graph."""
        self.nodes = []
        limits = (self._constant(f"range{n}", np.asarray(n, np.int64)) for n in (0, self.rows.rows, 1))
        result = self._decoded(self._node("Range", *limits), 1)
        result.type, result.shape = value.type, value.shape
        self.graph.insert_before(self.graph[0], self.nodes)
        return result

    # -- decoding ----------------------------------------------------------------------------------

    def _decoded(self, indices: ir.Value, rank: int) -> ir.Value:
        """Return rows of shape (indices..., columns) for indices of a rank of at least 1."""
        found = self._grid(indices) if self.rows.kind is RowKind.GRID else self._planes(indices, rank)
        return self._node("Add", found, self._constant("mean", self.rows.mean))

    def _grid(self, indices: ir.Value) -> ir.Value:
        rows, scale = self.rows, self.rows.scales[0].astype(np.float32)
        codes, factors = self._constant("codes", rows.planes[0]), self._constant("scale", scale)
        attributes = {"bits": int(rows.bits[0]), "block_size": rows.columns // scale.shape[1]}
        made = ir.node(
            "GatherBlockQuantized",
            [codes, indices, factors],
            attributes={**attributes, "gather_axis": 0, "quantize_axis": 1},
            domain=CONTRIB,
            name=fresh_name(self.taken, f"{self.table}_rows"),
        )
        # The kernel leaves rows beyond the table as they happen to be in memory; this Gather refuses their indices.
        offset = self._node("Gather", self._constant("offset", rows.scales[1]), indices)
        return self._node("Add", self._made(made), self._node("Cast", offset, to=ir.DataType.FLOAT.value))

    def _planes(self, indices: ir.Value, rank: int) -> ir.Value:
        ranks = self._ranks(indices)
        product, total = self.rows.kind is RowKind.PRODUCT, None
        for number, plane in enumerate(self.rows.planes):
            places = self._places(ranks, len(plane))
            values = self._words(number, plane, places)
            if not product:
                values = self._scaled(self._flat(values, rank), self._scale(number, places), rank)
            total = values if total is None else self._node("Add", total, values)
        if total is None:  # every row has 0 bits
            return self._nothing(ranks, rank)
        if product:
            places = self._places(ranks, len(self.rows.planes[0]))
            total = self._scaled(self._mixed(self._flat(total, rank)), self._scale(0, places), rank)
        return self._cut(total, rank) if self.rows.transform is None else total

    def _mixed(self, coefficients: ir.Value) -> ir.Value:
        """Return the columns that coefficients stand for: a product whose sums are exact in float32."""
        if self.rows.transform is None:
            return coefficients
        if self.transform is None:
            self.unpacker = Unpacker(self.graph, self.taken)
            self.transform = _unpacked(self.unpacker, self.rows.transform)
        return self._node("MatMul", coefficients, self.transform)

    def _ranks(self, indices: ir.Value) -> ir.Value:
        """Return where rows stand in the order of their bits."""
        if self.rows.uniform:
            return indices
        ranks = row_ranks(self.rows.bits).astype(self.rows.rank_dtype)
        found = self._node("Gather", self._constant("ranks", ranks), indices)
        return found if ranks.dtype == np.int32 else self._node("Cast", found, to=ir.DataType.INT32.value)

    def _places(self, ranks: ir.Value, held: int) -> ir.Value:
        """Return rows of a plane: those that it does not hold read the row of zeros behind them."""
        if held == self.rows.rows:
            return ranks
        name = f"places{held}"
        for node in self.nodes:
            if node.meta.get(name):
                return node.outputs[0]
        found = self._node("Min", ranks, self._constant(f"held{held}", np.asarray(held, np.int32)))
        self.nodes[-1].meta[name] = True
        return found

    def _words(self, number: int, plane: NDArray[np.uint8], places: ir.Value) -> ir.Value:
        """Return the vectors that a plane's bytes stand for: shape (indices..., bytes, 8)."""
        stored = self._constant(f"plane{number}", self._with_nothing(plane))
        codes = self._node("Cast", self._node("Gather", stored, places), to=ir.DataType.INT32.value)
        name = f"words{number}" if self.rows.kind is RowKind.PRODUCT else "signs"
        return self._node("Gather", self._constant(name, self.rows.plane_tables()[number]), codes)

    def _scale(self, number: int, places: ir.Value) -> ir.Value:
        stored = self._constant(f"scale{number}", self._with_nothing(self.rows.scales[number]))
        return self._node("Cast", self._node("Gather", stored, places), to=ir.DataType.FLOAT.value)

    def _with_nothing(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows with one of zeros behind them, if some rows of the table have none here."""
        return rows if len(rows) == self.rows.rows else np.pad(rows, [(0, 1), (0, 0)])

    def _flat(self, values: ir.Value, rank: int) -> ir.Value:
        width = -(-self.rows.columns // GROUP) * GROUP
        return self._node("Reshape", values, self._constant(f"row{rank}", np.asarray([*[0] * rank, width])))

    def _scaled(self, values: ir.Value, scale: ir.Value, rank: int) -> ir.Value:
        groups = self.rows.scales[0].shape[1]
        if groups == 1:
            return self._node("Mul", values, scale)
        width = -(-self.rows.columns // GROUP) * GROUP
        shapes = ([*[0] * rank, groups, width // groups], [*[0] * rank, groups, 1], [*[0] * rank, width])
        parts, each, whole = (self._constant(f"s{i}_{rank}", np.asarray(s)) for i, s in enumerate(shapes))
        product = self._node("Mul", self._node("Reshape", values, parts), self._node("Reshape", scale, each))
        return self._node("Reshape", product, whole)

    def _cut(self, values: ir.Value, rank: int) -> ir.Value:
        """Return rows without the columns that fill up the last byte."""
        if self.rows.columns % GROUP == 0:
            return values
        cut = (self._constant(f"cut{n}", np.asarray([n])) for n in (0, self.rows.columns))
        return self._node("Slice", values, *cut, self._constant(f"axis{rank}", np.asarray([rank])))

    def _nothing(self, ranks: ir.Value, rank: int) -> ir.Value:
        """Return rows of zeros."""
        zeros = np.zeros((1, self.rows.columns), np.float32)
        first = self._node("Min", ranks, self._constant("held0", np.asarray(0, np.int32)))
        return self._node("Gather", self._constant("zeros", zeros), first)

    # -- nodes and constants -----------------------------------------------------------------------

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = fresh_name(self.taken, f"{self.table}_row")
        return self._made(ir.node(op_type, list(inputs), attributes=attributes or None, name=name))

    def _made(self, node: ir.Node) -> ir.Value:
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        if name not in self.constants:
            wanted = fresh_name(self.taken, f"{self.table}_{name}")
            self.constants[name] = add_initializer(self.graph, wanted, np.asarray(array, order="C"))
        return self.constants[name]


def _unpacked(unpacker: Unpacker, transform: NDArray[np.int8]) -> ir.Value:
    """Return a transform as floats, which the runtime computes from packed constants when it loads a session."""
    levels = np.arange(-LARGEST, LARGEST + 1, dtype=np.int8)
    packed = unpacker.stored(pack((transform.reshape(-1) + LARGEST).astype(np.uint8), TRANSFORM_BITS))
    codes = unpacker.levels(packed, levels, TRANSFORM_BITS, transform.size)
    shaped = unpacker.node("Reshape", codes, unpacker.constant(np.asarray(transform.shape, np.int64)))
    return unpacker.node("Cast", shaped, to=ir.DataType.FLOAT.value)
