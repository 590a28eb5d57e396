"""store-int4: keep 4-bit weights as ONNX INT4, two codes in a byte, for runtimes with kernels for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompiler.model.edit import add_initializer, clone, constant_of, drop_unused, fresh_name, value_names
from qcompiler.plan import Role
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

BITS = 4
LARGEST = 7
"""Largest code of a symmetric grid of 4 bits."""


@dataclass(frozen=True, slots=True)
class StoreInt4:
    """Gives weights of a DequantizeLinear whose codes need no more than 4 bits the type INT4, if a plan has such.

    No value changes. Every INT4 weight gets its zero point spelled out: without it Qualcomm's HTP reads the codes as
    other numbers.
    """

    name: ClassVar[str] = "store-int4"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph in which no 4-bit code of a DequantizeLinear takes a byte."""
        weights = [t.spec for t in state.plan.tensors.values() if t.role is Role.WEIGHT and t.spec is not None]
        if all(spec.num_bits > BITS for spec in weights):
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        taken = value_names(model)
        narrowed: dict[ir.Value, ir.Value] = {}
        for node in list(model.graph):
            codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
            if codes is None or not _holds_4_bits(codes):
                continue
            if codes not in narrowed:
                narrowed[codes] = _int4(model.graph, codes, f"{codes.name}4", taken)
            node.replace_input_with(0, narrowed[codes])
            _spell_zero_point(model.graph, node, taken)
        drop_unused(model)
        metrics = (Metric("stored as INT4", len(narrowed), "tensors"),)
        report = PassReport(name=self.name, changed=bool(narrowed), metrics=metrics)
        return PassResult(replace(state, model=model) if narrowed else state, report)


def _holds_4_bits(codes: ir.Value) -> bool:
    array = constant_of(codes) if codes.dtype is ir.DataType.INT8 else None
    return array is not None and array.ndim > 0 and int(np.abs(array.astype(np.int16)).max(initial=0)) <= LARGEST


def _int4(graph: ir.Graph, codes: ir.Value, name: str, taken: set[str]) -> ir.Value:
    array = np.asarray(constant_of(codes), np.int8).astype(ml_dtypes.int4)
    return add_initializer(graph, fresh_name(taken, name), ir.Tensor(array, dtype=ir.DataType.INT4))


def _spell_zero_point(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    scale = constant_of(node.inputs[1])
    zeros = np.zeros(() if scale is None else scale.shape, ml_dtypes.int4)
    name = fresh_name(taken, f"{node.name}_zero_point")
    node.resize_inputs(3)
    node.replace_input_with(2, add_initializer(graph, name, ir.Tensor(zeros, dtype=ir.DataType.INT4)))
