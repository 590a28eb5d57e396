"""pack-constants: store float constants without loss in fewer bytes: equal ones once, few values as a palette."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.edit import add_initializer, clone, drop_unused, fresh_name, tensor_array, value_names
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

SMALLEST_BYTES = 1024
LARGEST_BYTES = 1 << 26
MAX_COLORS = 256
OVERHEAD_BYTES = 200
"""Two nodes and the names they bring."""


@dataclass(frozen=True, slots=True)
class PackConstants:
    """Shrinks what is left in float after the weights: grids, anchors, tables.

    A constant of at most 256 different values becomes ``Gather(values, Cast(indices))`` with one byte per index
    where that is shorter; ONNX Runtime folds it when it loads a session, so nothing is computed at run time and
    no bit changes.
    """

    name: ClassVar[str] = "pack-constants"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph whose large float constants are merged and packed."""
        if "" not in state.model.opset_imports:  # it has no Gather and no Cast to unpack with
            return PassResult(state, PassReport(name=self.name, changed=False))
        model = clone(state.model)
        merged = _merge(model.graph)
        packed = saved = 0
        taken = value_names(model)
        for value in list(model.graph.initializers.values()):
            gain = _pack(model.graph, value, taken)
            packed, saved = packed + bool(gain), saved + gain
        drop_unused(model)
        metrics = (Metric("merged", merged, "constants"), Metric("packed", packed, "constants"))
        report = PassReport(
            name=self.name, changed=bool(merged or packed), metrics=(*metrics, Metric("saved", saved, "bytes"))
        )
        return PassResult(replace(state, model=model) if report.changed else state, report)


def _candidate(value: ir.Value) -> NDArray[np.generic] | None:
    """Return the array of a plain float constant of a size worth looking at."""
    tensor = value.const_value
    if tensor is None or isinstance(tensor, (ir.LazyTensor, ir.ExternalTensor)) or value.is_graph_output():
        return None
    if not SMALLEST_BYTES <= tensor.nbytes <= LARGEST_BYTES or tensor.dtype is not ir.DataType.FLOAT:
        return None
    return tensor_array(tensor)


def _merge(graph: ir.Graph) -> int:
    """Let users of equal constants share the first of them, and return how many others there were."""
    first: dict[bytes, ir.Value] = {}
    count = 0
    for value in graph.initializers.values():
        array = _candidate(value)
        if array is None:
            continue
        key = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()
        keeper = first.setdefault(key, value)
        if keeper is not value:
            value.replace_all_uses_with(keeper)
            count += 1
    return count


def _pack(graph: ir.Graph, value: ir.Value, taken: set[str]) -> int:
    """Replace a constant by a palette and indices where that saves bytes, and return how many."""
    array = _candidate(value)
    if array is None or not value.uses() or value.const_value is None:
        return 0
    # Bit patterns, not values: -0.0 and 0.0 are two colors.
    bits, index = np.unique(np.ascontiguousarray(array).view(np.uint32).reshape(-1), return_inverse=True)
    saved = int(array.nbytes - index.size - bits.nbytes) - OVERHEAD_BYTES
    if bits.size > MAX_COLORS or saved <= 0:
        return 0
    name = value.name or ""
    shape = ir.Shape(array.shape)
    palette = add_initializer(graph, fresh_name(taken, f"{name}_values"), bits.view(np.float32))
    indices = index.reshape(array.shape).astype(np.uint8)
    stored = add_initializer(graph, fresh_name(taken, f"{name}_indices"), indices)
    wide = ir.node("Cast", [stored], attributes={"to": ir.DataType.INT32.value}, name=fresh_name(taken, f"{name}_wide"))
    restored = ir.node("Gather", [palette, wide.outputs[0]], name=fresh_name(taken, f"{name}_restored"))
    for made, dtype in ((wide, ir.DataType.INT32), (restored, ir.DataType.FLOAT)):
        made.outputs[0].name = made.name
        made.outputs[0].type, made.outputs[0].shape = ir.TensorType(dtype), shape
    graph.insert_before(graph[0], [wide, restored])
    value.replace_all_uses_with(restored.outputs[0])
    return saved
