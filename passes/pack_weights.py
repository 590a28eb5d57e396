"""pack-weights: store weights in integers for nodes that compute in float, decoded once at session load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.errors import QCompileError
from qcompiler.lowering import add_codes, correct_bias, lazy_codes
from qcompiler.model.edit import add_initializer, all_nodes, clone, drop_unused, fresh_name, value_names
from qcompiler.model.weights import weight_operands
from qcompiler.plan import Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.grid import along
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State


@dataclass(frozen=True, slots=True)
class PackWeights:
    """Replaces planned weights of float nodes by ``Mul(Cast(codes), scale)``.

    ONNX Runtime folds Cast and Mul of constants when it loads a session (it does not fold DequantizeLinear),
    so the file holds integers and the node runs exactly as fast as before. Codes are computed when the file
    is written, one tensor at a time.
    """

    name: ClassVar[str] = "pack-weights"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which every weight-only tensor is stored in integers."""
        if not any(n.precision is Precision.WEIGHT_ONLY for n in state.plan.nodes.values()):
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        taken = value_names(model)
        packed: set[str] = set()
        chosen = {n.name for n in state.plan.nodes.values() if n.precision is Precision.WEIGHT_ONLY}
        for node, graph in all_nodes(model):
            if node.name not in chosen:
                continue
            if graph is model.graph:
                correct_bias(graph, node, state.plan, taken)
            for index in weight_operands(node):
                value = node.inputs[index]
                entry = state.plan.tensors.get(value.name or "") if value is not None else None
                if value is None or entry is None or entry.role is not Role.WEIGHT:
                    continue
                decoded = _decoded(value, entry, taken)
                for use in list(value.uses()):
                    if use.node.name in chosen and use.idx in weight_operands(use.node):
                        use.node.replace_input_with(use.idx, decoded)
                packed.add(entry.name)
        drop_unused(model)
        report = PassReport(name=self.name, changed=bool(packed), metrics=(Metric("packed", len(packed), "tensors"),))
        return PassResult(replace(state, model=model) if packed else state, report)


def _repeated(
    home: ir.Graph, scale: ir.Value, blocks: tuple[int, int], shape: tuple[int, ...], taken: set[str]
) -> ir.Value:
    """Return a scale per block as one per element, which the runtime computes when it loads a session.

    Args:
        home: where to.
        scale: a matrix.
        blocks: the axis along which blocks lie, and the elements of one.
        shape: of the weight.
        taken: names.
    """
    axis, size = blocks
    nodes, last = [], scale
    apart = list(scale.shape.numpy()) if scale.shape is not None else []
    apart.insert(axis + 1, 1)
    wide = [size if i == axis + 1 else n for i, n in enumerate(apart)]
    joined = [-1 if i == axis else n for i, n in enumerate(shape)]
    steps: list[tuple[str, list[list[int]]]] = [("Reshape", [apart]), ("Expand", [wide]), ("Reshape", [joined])]
    steps.append(("Slice", [[0, 0], list(shape)]))
    for op_type, operands in steps:
        name = fresh_name(taken, f"{scale.name}_{op_type.lower()}")
        constants = [add_initializer(home, fresh_name(taken, f"{name}_by"), np.asarray(o)) for o in operands]
        nodes.append(ir.node(op_type, [last, *constants], name=name))
        last = nodes[-1].outputs[0]
        last.name = name
    last.type, last.shape = scale.type, ir.Shape(shape)
    home.insert_before(home[0], nodes)
    return last


def _decoded(value: ir.Value, entry: TensorPlan, taken: set[str]) -> ir.Value:
    """Return a value that decodes a weight from its codes, at the start of the graph that the weight is in."""
    tensor, home = value.const_value, value.graph
    if tensor is None or not isinstance(home, ir.Graph) or entry.spec is None or entry.scale is None:
        raise QCompileError(f"weight '{entry.name}' is planned without a grid, or is no constant")
    dtype, shape = tensor.dtype, tensor.shape.numpy()
    codes = ir.LazyTensor(lazy_codes(value, entry), ir.DataType.INT8, ir.Shape(shape), cache=False)
    stored = add_codes(home, fresh_name(taken, f"{value.name}_codes"), codes, entry)
    block_size, axis = entry.spec.block_size, entry.spec.axis or 0
    per_block = entry.scale if axis == 0 or block_size is None else entry.scale.T
    factors = per_block if block_size is not None else along(entry.scale, entry.spec.axis, len(shape))
    scale = add_initializer(home, fresh_name(taken, f"{value.name}_scale"), np.asarray(factors, dtype.numpy()))
    if block_size is not None:
        scale = _repeated(home, scale, (1 - axis, block_size), tuple(shape), taken)
    cast = ir.node("Cast", [stored], attributes={"to": dtype.value}, name=fresh_name(taken, f"{value.name}_cast"))
    multiply = ir.node("Mul", [cast.outputs[0], scale], name=fresh_name(taken, f"{value.name}_decoded"))
    for made in (cast, multiply):
        made.outputs[0].name = made.name
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(dtype), ir.Shape(shape)
    maker = scale.producer()
    if maker is None:
        home.insert_before(home[0], [cast, multiply])
    else:
        home.insert_after(maker, [cast, multiply])
    return multiply.outputs[0]
