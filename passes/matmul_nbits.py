"""matmul-nbits: products by weights of 2, 4 or 8 bits that the runtime decodes inside its kernel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.blockwise import DOMAIN, OPERATOR, Codes, codes_of, form_of, multiplies_matrix, transposed
from qcompiler.codec.bits import BYTE_BITS, pack
from qcompiler.errors import QCompileError
from qcompiler.lowering import add_codes, weight_codes
from qcompiler.model.edit import (
    add_initializer,
    all_nodes,
    clone,
    drop_unused,
    fresh_name,
    take_over,
    tensor_array,
    value_names,
)
from qcompiler.plan import Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

IN_INTEGERS = 4
"""The accuracy level at which the operator rounds its inputs to 8 bits, block by block."""


@dataclass(frozen=True, slots=True)
class MatmulNbits:
    """Replaces planned MatMul and Gemm nodes by MatMulNBits of the domain com.microsoft.

    Weights of 2, 4 and 8 bits are stored as the operator reads them. Those of other widths are stored in their own and
    widened by standard operators, which the runtime computes when it loads a session: pack-bits packs what is stored.
    Zero points are left out where they are the operator's default, the middle of its codes.
    """

    name: ClassVar[str] = "matmul-nbits"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which every blockwise node is a MatMulNBits.

        Raises:
            QCompileError: a planned weight has no such form.
        """
        if not any(n.precision is Precision.BLOCKWISE for n in state.plan.nodes.values()):
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        writer, written, widened = _Writer(model.graph, value_names(model)), 0, 0
        for node, graph in all_nodes(model):
            decision = state.plan.nodes.get(node.name or "")
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            entry = state.plan.tensors.get(weight.name or "") if weight is not None else None
            if decision is None or decision.precision is not Precision.BLOCKWISE or weight is None:
                continue
            if entry is None or entry.role is not Role.WEIGHT or entry.spec is None or entry.scale is None:
                continue
            if not multiplies_matrix(node) or graph is not model.graph or entry.spec.block_size is None:
                raise QCompileError(f"'{node.name}' is planned as {OPERATOR}, which does not fit it")
            form = form_of(state.plan, node.name or "")
            codes = codes_of(entry, form.num_bits if form is not None else 2)
            level = form.accuracy_level if form is not None else IN_INTEGERS
            writer.replace(node, entry, codes, level)
            written, widened = written + 1, widened + (entry.spec.num_bits != codes.num_bits)
        drop_unused(model)
        if written:
            model.opset_imports.setdefault(DOMAIN, 1)
        metrics = (Metric("blockwise", written, "nodes"), Metric("widened when loaded", widened, "nodes"))
        report = PassReport(name=self.name, changed=bool(written), metrics=metrics)
        return PassResult(replace(state, model=model) if written else state, report)


@dataclass(slots=True)
class _Writer:
    """Writes constants once for all products that share a weight; what widens them stands at the start."""

    graph: ir.Graph
    taken: set[str]
    stored: dict[tuple[str, int], list[ir.Value | None]] = field(default_factory=dict)

    def replace(self, node: ir.Node, entry: TensorPlan, codes: Codes, level: int) -> None:
        """Put the operator in the place of a product; it keeps its name and its output."""
        key, weight = (entry.name, codes.num_bits), node.inputs[1]
        tensor = weight.const_value if weight is not None else None
        if tensor is None or entry.spec is None or entry.spec.block_size is None:
            raise QCompileError(f"planned weight '{entry.name}' is no constant")
        source = _Source(tensor, entry, codes, transposed(node))
        if key not in self.stored:
            self.stored[key] = self._constants(source)
        outputs, inputs = source.shape
        sizes = {"K": inputs, "N": outputs, "bits": codes.num_bits, "block_size": entry.spec.block_size}
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        operands = [node.inputs[0], *self.stored[key]]
        made = ir.node(OPERATOR, operands, domain=DOMAIN, name=node.name, attributes={**sizes, "accuracy_level": level})
        made.outputs[0].name = fresh_name(self.taken, f"{node.name}_product")
        self.graph.insert_before(node, made)
        last = made.outputs[0]
        if bias is not None:
            made.name = fresh_name(self.taken, f"{node.name}_product")
            added = ir.node("Add", [last, bias], name=node.name)
            self.graph.insert_before(node, added)
            last.type, last.shape = node.outputs[0].type, node.outputs[0].shape
            last = added.outputs[0]
        take_over(node, last)

    def _constants(self, source: _Source) -> list[ir.Value | None]:
        """Return codes, scales and, where they are not the default, zero points as constants."""
        name, entry, bits = source.entry.name, source.entry, source.codes.num_bits
        if entry.scale is None or entry.zero_point is None:
            raise QCompileError(f"weight '{name}' is planned without a grid")
        found: list[ir.Value | None]
        if entry.spec is not None and entry.spec.num_bits == bits:
            packed = ir.LazyTensor(source.packed, ir.DataType.UINT8, ir.Shape(source.packed_shape), cache=False)
            found = [add_initializer(self.graph, fresh_name(self.taken, f"{name}_blocks"), packed)]
        else:
            found = [self._widened(source)]
        scale = np.ascontiguousarray(entry.scale).reshape(-1)
        found.append(add_initializer(self.graph, fresh_name(self.taken, f"{name}_scale"), scale))
        zero = entry.zero_point + source.codes.offset
        if (zero != 1 << (bits - 1)).any():
            each = BYTE_BITS // bits
            filled = np.pad(zero, ((0, 0), (0, -zero.shape[1] % each)))
            stored = pack(filled.astype(np.uint8), bits)
            found.append(add_initializer(self.graph, fresh_name(self.taken, f"{name}_zero_points"), stored))
        return found

    def _widened(self, source: _Source) -> ir.Value:
        """Return the operator's bytes as computed from planned codes, which are stored one by one."""
        name, (bits, offset), entry = source.entry.name, source.codes, source.entry
        compute = ir.LazyTensor(source.planned, ir.DataType.INT8, ir.Shape(source.padded_shape), cache=False)
        last = add_codes(self.graph, fresh_name(self.taken, f"{name}_codes"), compute, entry)
        each = BYTE_BITS // bits
        places = (1 << bits * np.arange(each)).astype(np.int32)
        steps: list[tuple[str, NDArray[Any] | None, dict[str, int]]] = [
            ("Reshape", np.asarray([-1, each]), {}),
            ("Cast", None, {"to": ir.DataType.INT32.value}),
            ("MatMul", places.reshape(-1, 1), {}),
            ("Add", np.asarray(offset * int(places.sum()), np.int32), {}),
            ("Cast", None, {"to": ir.DataType.UINT8.value}),
            ("Reshape", np.asarray(source.packed_shape), {}),
        ]
        nodes = []
        for op_type, operand, attributes in steps:
            made_name = fresh_name(self.taken, f"{name}_{op_type.lower()}")
            inputs = [last]
            if operand is not None:
                inputs.append(add_initializer(self.graph, fresh_name(self.taken, f"{made_name}_by"), operand))
            nodes.append(ir.node(op_type, inputs, attributes=attributes or None, name=made_name))
            last = nodes[-1].outputs[0]
            last.name = made_name
        last.type, last.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape(source.packed_shape)
        self.graph.insert_before(self.graph[0], nodes)
        return last


@dataclass(frozen=True, slots=True)
class _Source:
    """A planned weight as the operator wants it: rows of outputs, cut into blocks of inputs."""

    tensor: ir.TensorProtocol
    entry: TensorPlan
    codes: Codes
    rows_first: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        first, second = self.tensor.shape.numpy()
        return (first, second) if self.rows_first else (second, first)

    @property
    def block_size(self) -> int:
        return self.entry.spec.block_size or 1 if self.entry.spec is not None else 1

    @property
    def padded_shape(self) -> tuple[int, int]:
        """(outputs, inputs of whole blocks)."""
        outputs, inputs = self.shape
        return outputs, -(-inputs // self.block_size) * self.block_size

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """(outputs, blocks, bytes of a block)."""
        outputs, inputs = self.padded_shape
        return outputs, inputs // self.block_size, self.block_size * self.codes.num_bits // BYTE_BITS

    def rows(self) -> NDArray[np.int8]:
        """Return planned codes as int8 of ``padded_shape``; what fills the last block is any of them."""
        codes = weight_codes(tensor_array(self.tensor), self.entry)
        rows = codes if self.rows_first else codes.T
        missing = self.padded_shape[1] - rows.shape[1]
        return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, missing)), mode="edge"))

    def planned(self) -> ir.TensorProtocol:
        """Return the planned codes."""
        return ir.tensor(self.rows())

    def packed(self) -> ir.TensorProtocol:
        """Return the operator's bytes."""
        numbers = (self.rows().astype(np.int16) + self.codes.offset).astype(np.uint8)
        return ir.tensor(pack(numbers, self.codes.num_bits).reshape(self.packed_shape))
