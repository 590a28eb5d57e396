"""align-channels: give convolutions of odd input channels the number of channels that the fast integer kernel wants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.bits import BYTE_BITS
from qcompiler.lowering import aligned_channels
from qcompiler.model.edit import add_initializer, clone, constant_of, drop_unused, fresh_name, value_names
from qcompiler.plan import Role
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

PADS_CODES = 13
"""The opset of a Pad that takes int8 in every version of the runtime."""


@dataclass(frozen=True, slots=True)
class AlignChannels:
    """Repeats input channels of convolutions for which the plan says so, and multiplies them by zero.

    ONNX Runtime's integer convolution that needs no im2col takes input channels by fours. A network's first
    convolution has one or three, so it runs in a kernel of half the speed. A Gather on the codes repeats
    channel 0, the weights get as many input channels of zeros: every sum is the same, bit for bit. Whether it
    is faster is measured, at -O2; the plan keeps the answer.

    Where some weight has fewer than 8 bits, the file holds none of those zeros: a Pad adds them, which the runtime
    computes when it loads a session, like all that unpacks weights.
    """

    name: ClassVar[str] = "align-channels"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.LOWERED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which the planned convolutions read more channels."""
        wanted = {n.name: aligned_channels(state.plan, n.name or "") for n in state.model.graph}
        done = 0
        if any(wanted.values()):
            model = clone(state.model)
            taken = value_names(model)
            small = _pads_codes(model) and any(
                t.role is Role.WEIGHT and t.spec is not None and t.spec.num_bits < BYTE_BITS
                for t in state.plan.tensors.values()
            )
            widen = _Widening(model.graph, taken, padding=small)
            done = sum(widen(n, wanted.get(n.name, 0)) for n in tuple(model.graph))
            drop_unused(model)
            state = replace(state, model=model) if done else state
        metrics = (Metric("aligned", done, "convolutions"),)
        return PassResult(state, PassReport(name=self.name, changed=bool(done), metrics=metrics))


def _pads_codes(model: ir.Model) -> bool:
    """Return whether the model's opset has a Pad of int8."""
    return model.opset_imports.get("", 0) >= PADS_CODES


@dataclass(frozen=True, slots=True)
class _Widening:
    """Lets convolutions of a graph read more channels.

    Attributes:
        graph: the graph.
        taken: names that are in use.
        padding: zeros are added by an operator, instead of being stored.
    """

    graph: ir.Graph
    taken: set[str]
    padding: bool

    def __call__(self, node: ir.Node, channels: int) -> bool:
        """Let one read ``channels`` channels; False where it does not run in integers, or reads as many."""
        if not channels:
            return False
        data, weight = (v.producer() if v is not None else None for v in node.inputs[:2])
        if data is None or weight is None or {data.op_type, weight.op_type} != {"DequantizeLinear"}:
            return False
        value = weight.inputs[0]
        codes = constant_of(value)
        if value is None or codes is None or codes.shape[1] >= channels:
            return False
        name, extra = node.name or "", channels - codes.shape[1]
        picked = np.asarray([*range(codes.shape[1]), *[0] * extra], np.int64)
        indices = add_initializer(self.graph, fresh_name(self.taken, f"{name}_channels"), picked)
        wide = self._padded(node, value, extra) if self.padding else self._stored(name, codes, extra)
        repeated = ir.node("Gather", [data.inputs[0], indices], attributes={"axis": 1}, name=f"{name}_aligned")
        _describe(repeated, fresh_name(self.taken, f"{name}_aligned"), data.inputs[0], channels)
        for index, maker, source in ((0, data, repeated.outputs[0]), (1, weight, wide)):
            again = self._decoded(maker, source, f"{name}_{index}_dq")
            self.graph.insert_before(node, [repeated, again] if index == 0 else again)
            node.replace_input_with(index, again.outputs[0])
        return True

    def _stored(self, name: str, codes: NDArray[Any], extra: int) -> ir.Value:
        zeros = np.zeros((codes.shape[0], extra, *codes.shape[2:]), codes.dtype)
        wide = np.concatenate([codes, zeros], 1)
        return add_initializer(self.graph, fresh_name(self.taken, f"{name}_aligned_weight"), wide)

    def _padded(self, node: ir.Node, codes: ir.Value, extra: int) -> ir.Value:
        shape = () if codes.shape is None else codes.shape.numpy()
        ends = np.zeros((2, len(shape)), np.int64)
        ends[1, 1] = extra
        name = fresh_name(self.taken, f"{node.name}_aligned_weight")
        amounts = add_initializer(self.graph, fresh_name(self.taken, f"{node.name}_zeros"), ends.reshape(-1))
        pad = ir.node("Pad", [codes, amounts], name=name)
        made = pad.outputs[0]
        made.name, made.type = name, ir.TensorType(ir.DataType.INT8)
        made.shape = ir.Shape([shape[0], shape[1] + extra, *shape[2:]])
        self.graph.insert_before(node, pad)
        return made

    def _decoded(self, maker: ir.Node, source: ir.Value, name: str) -> ir.Node:
        attributes = {k: v.as_int() for k, v in maker.attributes.items()}
        inputs = [source, *maker.inputs[1:]]
        again = ir.node("DequantizeLinear", inputs, attributes=attributes, name=fresh_name(self.taken, name))
        again.outputs[0].name = again.name
        again.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        again.outputs[0].shape = source.shape
        return again


def _describe(node: ir.Node, name: str, like: ir.Value | None, channels: int) -> None:
    """Name a node's output, and give it the type and the shape of another value with so many channels."""
    made = node.outputs[0]
    made.name = name
    if like is not None:
        made.type = like.type
        if like.shape is not None:
            made.shape = ir.Shape([channels if axis == 1 else size for axis, size in enumerate(like.shape)])
