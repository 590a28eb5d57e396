"""Planned weights as problems for the solvers of codes: their rows, the moments of their inputs, their smallest scales.

Weights of every operator become rows of output channels, (groups, rows, inputs), and codes go back the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.model.edit import constant_of
from qcompiler.model.weights import channel_axis_of, has_row_bias
from qcompiler.plan import CompressionPlan, Precision, Role, TensorPlan
from qcompiler.quant.grid import SMALLEST_SCALE
from qcompiler.quant.weights import as_rows, bias_floor
from qcompiler.runtime.grams import GramLayout, GramOptions, capture_grams, gram_layout
from qcompiler.state import State

Float64 = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)
Use = tuple[ir.Node, int]
"""A node, and which of its inputs the weight is."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedWeight:
    """One weight that is to get codes.

    Attributes:
        entry: its plan entry; has a grid.
        array: float32, the weight.
        uses: the nodes that read it, in order.
        layout: of the Gram matrix of its inputs; None where there is none.
        refusal: why there is none, else "".
    """

    entry: TensorPlan
    array: NDArray[np.float32]
    uses: tuple[Use, ...]
    layout: GramLayout | None
    refusal: str

    @property
    def num_bits(self) -> int:
        """Width of its codes."""
        return self.entry.spec.num_bits if self.entry.spec is not None else 8

    @property
    def axis(self) -> int | None:
        """The axis of its output channels; None for one scale in all."""
        return self.entry.spec.axis if self.entry.spec is not None else None

    @property
    def block_size(self) -> int:
        """Inputs that share a scale; 0 is all of an output channel."""
        return (self.entry.spec.block_size or 0) if self.entry.spec is not None else 0

    def rows(self) -> Float64:
        """Return the weight as float64 of shape (groups, rows, inputs)."""
        flat = self.array.reshape(1, -1) if self.axis is None else as_rows(self.array, self.axis)
        groups = self.layout.groups if self.layout is not None else 1
        return flat.astype(np.float64).reshape(groups, -1, flat.shape[1])

    def shaped(self, rows: NDArray[Number]) -> NDArray[Number]:
        """Return numbers of shape (groups, rows, inputs), such as codes, in the shape of the weight."""
        if self.axis is None:
            return rows.reshape(self.array.shape)
        moved = np.moveaxis(self.array, self.axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, self.axis))

    def scale(self, rows: Float64) -> NDArray[np.float32]:
        """Return scales of shape (groups, rows) as the plan keeps them: float32 of shape () or (channels,).

        Those of blocks, (groups, rows, blocks), become (channels, blocks).
        """
        flat = rows.astype(np.float32).reshape(-1, *rows.shape[2:])
        return flat.reshape(()) if self.axis is None else flat


def planned_weights(
    state: State, narrow: range, names: Collection[str] | None = None, *, blocks: bool = False
) -> list[PlannedWeight]:
    """Return the planned weights whose width is in a range, in the order in which the network reads them.

    Args:
        state: a placed state.
        narrow: widths in bits.
        names: only these; None for all. Weights are read into memory.
        blocks: also those with a scale for every block of inputs.
    """
    wanted = {
        name: entry
        for name, entry in state.plan.tensors.items()
        if entry.role is Role.WEIGHT and entry.spec is not None and entry.spec.num_bits in narrow
        if (blocks or entry.spec.block_size is None) and (names is None or name in names)
    }
    if not wanted:
        return []
    main = set(state.model.graph)
    users = {name: uses for name, uses in weight_users(state.model).items() if name in wanted}
    return [_planned(wanted[name], uses, main) for name, uses in users.items() if constant_of(_value(uses)) is not None]


def weight_users(model: ir.Model) -> dict[str, list[Use]]:
    """Return the users of every initializer in order, over all subgraphs."""
    found: dict[str, list[Use]] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                found.setdefault(value.name or "", []).append((node, index))
    return found


def _value(uses: Sequence[Use]) -> ir.Value | None:
    node, index = uses[0]
    return node.inputs[index]


def _planned(entry: TensorPlan, uses: list[Use], main: set[ir.Node]) -> PlannedWeight:
    array = np.asarray(constant_of(_value(uses)), np.float32)
    axis = entry.spec.axis if entry.spec is not None else None
    layouts: list[GramLayout] = []
    refusal = ""
    for node, index in uses:
        found = gram_layout(node) if index == 1 and node in main else f"{node.op_type} '{node.name}' is no such product"
        if isinstance(found, str):
            refusal = found
        elif axis is None or axis != channel_axis_of(node, 1):
            refusal = "its scales do not belong to output channels"
        else:
            layouts.append(found)
    if not refusal and any((g.groups, g.inputs) != (layouts[0].groups, layouts[0].inputs) for g in layouts):
        refusal = "its users read it differently"
    return PlannedWeight(entry, array, tuple(uses), None if refusal else layouts[0], refusal)


def takes_mean_back(node: ir.Node, plan: CompressionPlan) -> bool:
    """Return True if a bias correction follows, which takes back the mean error of the node's rounded weights."""
    decision = plan.nodes.get(node.name or "")
    rounded = decision is not None and decision.precision in (Precision.INTEGER, Precision.WEIGHT_ONLY)
    return rounded and node.op_type in ("Conv", "Gemm") and has_row_bias(node)


def gram_matrices(
    state: State, weights: Sequence[PlannedWeight], samples: Dataset, options: GramOptions
) -> Mapping[str, Float64]:
    """Return H of every weight that has one, summed over its users: weight name -> (groups, inputs, inputs).

    It is centered for users whose bias takes the mean error back, and the plain second moment for others.

    Raises:
        DataError: the model does not run on a sample.
    """
    layouts = {}
    for weight in weights:
        for node, _ in weight.uses:
            found = gram_layout(node) if weight.layout is not None else ""
            if isinstance(found, GramLayout):
                layouts[node.name or ""] = found
    grams = capture_grams(state.model, layouts, samples, options) if layouts else {}
    sums: dict[str, Float64] = {}
    for weight in weights:
        if weight.layout is None:
            continue
        parts = [(grams[node.name or ""], takes_mean_back(node, state.plan)) for node, _ in weight.uses]
        total = np.zeros_like(parts[0][0].second)
        for gram, centered in parts:
            total += gram.centered() if centered else gram.second
        sums[weight.entry.name] = total
    return sums


def scale_floor(state: State, uses: Sequence[Use], channels: int) -> Float64:
    """Return the smallest scale of each channel with which the biases of all integer users fit in 32 bits.

    float64, shape (channels,); 0 where nothing asks for one.
    """
    floor = np.zeros(channels)
    for node, index in uses:
        decision = state.plan.nodes.get(node.name or "")
        bias = constant_of(node.inputs[2]) if index == 1 and len(node.inputs) > 2 else None
        data = node.inputs[0].name or "" if node.inputs[0] is not None else ""
        statistics, entry = state.statistics.get(data), state.plan.activation(data)
        if decision is None or decision.precision is not Precision.INTEGER or bias is None:
            continue
        if statistics is None or entry is None or entry.spec is None or bias.size not in (1, channels):
            continue
        first, last = entry.spec.code_range
        wanted = bias_floor(bias.reshape(-1), statistics.low, statistics.high, last - first + 1)
        floor = np.maximum(floor, wanted)
    return floor


def row_floor(state: State, weight: PlannedWeight) -> Float64:
    """Return the smallest scales of a weight's rows, float64 of shape (groups, rows), all positive."""
    groups, rows, _ = weight.rows().shape
    floor = scale_floor(state, weight.uses, groups * rows)
    return np.maximum(floor, SMALLEST_SCALE).reshape(groups, rows)
