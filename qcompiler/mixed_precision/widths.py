"""Weights whose width is a choice: which they are, what the recipe allows, and how a choice is planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompiler.model.edit import constant_of
from qcompiler.plan import CompressionPlan, QuantSpec, Role, TensorPlan
from qcompiler.quant.grid import Float32
from qcompiler.quant.weights import as_rows, input_importance
from qcompiler.recipe import Recipe
from qcompiler.state import State

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
MULTIPLIED = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators whose weights take part; tables and recurrent weights keep the width of the recipe."""
PACKING_BYTES = 400
"""What unpacking one weight below 8 bits costs in the file; the gate measures the file itself."""
DEAD = 1e-3
"""Inputs that hardly vary on the samples still count this share of the mean: they may vary on others."""


@dataclass(frozen=True, slots=True, eq=False)
class Choosable:
    """A weight whose width is a choice.

    Attributes:
        entry: its plan.
        uses: the nodes of the main graph that multiply by it, in order; tied layers share one entry.
        fixed: the width that the recipe prescribes, or None.
    """

    entry: TensorPlan
    uses: tuple[ir.Node, ...]
    fixed: int | None

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.entry.name

    @property
    def size(self) -> int:
        """How many numbers the weight holds."""
        constant = self.uses[0].inputs[1]
        return int(constant.const_value.size) if constant is not None and constant.const_value is not None else 0


def choosable(state: State, recipe: Recipe) -> list[Choosable]:
    """Return the planned weights of Conv, Gemm and MatMul of the main graph, in graph order.

    A weight with any other reader, or with one inside a subgraph, keeps its width.
    """
    inner = set(state.model.graph.all_nodes()) - set(state.model.graph)
    found: dict[str, list[ir.Node]] = {}
    refused: set[str] = set()
    for node in [*state.model.graph, *inner]:
        for index, value in enumerate(node.inputs):
            entry = state.plan.tensors.get(value.name or "") if value is not None else None
            if entry is None or entry.role is not Role.WEIGHT or entry.spec is None:
                continue
            if node in inner or index != 1 or node.op_type not in MULTIPLIED or constant_of(value) is None:
                refused.add(entry.name)
            else:
                found.setdefault(entry.name, []).append(node)
    return [
        Choosable(state.plan.tensors[name], tuple(uses), _fixed(recipe, name, uses))
        for name, uses in found.items()
        if name not in refused
    ]


def _fixed(recipe: Recipe, weight: str, uses: list[ir.Node]) -> int | None:
    """Return the width that the last rule with one prescribes for a weight or a layer that reads it."""
    widths = [recipe.rule_of([node.name or "", weight]) for node in uses]
    return next((r.num_bits for r in widths if r is not None and r.num_bits is not None), None)


def with_widths(
    plan: CompressionPlan, widths: Mapping[str, int], reasons: Mapping[str, str], by: str
) -> CompressionPlan:
    """Return the plan with other widths; what was decided on top of a width that changes is dropped.

    Args:
        plan: with an entry for every weight named.
        widths: weight -> bits.
        reasons: weight -> why, one line.
        by: the pass that decides.
    """
    done = []
    for name, bits in widths.items():
        entry = plan.tensors[name]
        spec = replace(entry.spec or QuantSpec(signed=True, symmetric=True), num_bits=bits)
        deciders = (*entry.decided_by, *(() if by in entry.decided_by else (by,)))
        if entry.spec == spec:
            done.append(replace(entry, reason=reasons.get(name, entry.reason), decided_by=deciders))
        else:
            done.append(
                TensorPlan(
                    name=name, role=Role.WEIGHT, spec=spec, reason=reasons.get(name, ""), decided_by=("place", by)
                )
            )
    return plan.with_tensors(*done)


def weight_rows(layer: Choosable) -> Float32:
    """Return the weight as rows of output channels, float32 (channels, weights per channel)."""
    weight = np.asarray(constant_of(layer.uses[0].inputs[1]), np.float32)
    axis = layer.entry.spec.axis if layer.entry.spec is not None else None
    return weight.reshape(1, -1) if axis is None else as_rows(weight, axis)


def row_importance(state: State, layer: Choosable) -> Float32 | None:
    """Return the variance of the input behind each weight, as ``input_importance`` orders it; None if unknown.

    The mean is left out: a bias takes back what it contributes to the error.
    """
    node, entry = layer.uses[0], layer.entry
    value, constant = node.inputs[0], constant_of(node.inputs[1])
    statistics = state.statistics.get(value.name or "") if value is not None else None
    axis = entry.spec.axis if entry.spec is not None else None
    if statistics is None or axis is None or constant is None:
        return None
    attribute = node.attributes.get("group")
    groups = attribute.as_int() if attribute is not None else 1
    shape = constant.shape
    inputs = shape[1] * groups if node.op_type == "Conv" else shape[1 - axis] if len(shape) == 2 else 0
    power = statistics.channel_power
    if power.size != inputs:
        return None
    bias = node.op_type in ("Conv", "Gemm")
    spread = np.maximum(power - np.square(statistics.channel_mean), 0.0) if bias else power
    return input_importance(shape, axis, np.maximum(spread, DEAD * float(power.mean()) + 1e-30), groups)
