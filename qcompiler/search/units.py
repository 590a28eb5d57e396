"""The stops of a search: which decisions are taken together, and in which order the network makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompiler.activation_grids import grid_groups
from qcompiler.layer_problems import PlannedWeight, planned_weights, takes_mean_back
from qcompiler.model.weights import scales_operands
from qcompiler.state import Context, State

if TYPE_CHECKING:
    from qcompiler.executor.executor import TorchExecutor

BYTE = 8
FUSED = frozenset({"Relu", "Clip"})
"""What an integer kernel of a layer computes on its way out."""


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One stop of a search in execution order.

    Attributes:
        name: of the weight or the first activation.
        step: number of the first step that its decisions change.
        weight: what is rounded here; None at a stop for activations only.
        node: the Conv or Gemm whose bias moves with the weight; "" where no bias can.
        group: activations that keep one grid: the layer's output, or values that no layer makes; may be empty.
        narrow: the group has fewer than 8 bits.
    """

    name: str
    step: int
    weight: PlannedWeight | None = None
    node: str = ""
    group: tuple[str, ...] = ()
    narrow: bool = False


def few_bits(state: State) -> bool:
    """Return True if some weight or activation is planned with fewer than 8 bits: what searches are for."""
    return any(t.spec is not None and t.spec.num_bits < BYTE for t in state.plan.tensors.values())


def is_named(name: str, context: Context) -> bool:
    """Return True if the user asked for a pass by name."""
    return any(n.partition("{")[0] == name for n in context.recipe.passes or ())


def searched_units(state: State, executor: TorchExecutor) -> tuple[Unit, ...]:
    """Return the stops of a search, in the order in which the network computes them.

    Weights of 8 bits are left alone where others have fewer; so are pruned ones, whose zeros are to stay, and what no
    step of the executor reads.
    """
    bits = range(1, BYTE if few_bits(state) else BYTE + 1)
    weights = [u for w in planned_weights(state, bits) if (u := _weight_unit(w, state, executor)) is not None]
    nodes = {n.name or "": n for n in state.model.graph}
    by_output = {_output_of(nodes[u.node]): number for number, u in enumerate(weights) if u.node}
    alone = []
    for group in grid_groups(state.model, state.plan):
        step = _first_reader(group, executor)
        number = next((by_output[name] for name in group if name in by_output), None)
        if number is not None and weights[number].step <= step and not weights[number].group:
            weights[number] = replace(weights[number], group=group, narrow=_is_narrow(group[0], state))
        elif step < len(executor.steps) or set(group) & set(executor.outputs):
            alone.append(Unit(group[0], step, group=group, narrow=_is_narrow(group[0], state)))
    # What a layer reads is settled before the layer.
    return tuple(sorted([*weights, *alone], key=lambda u: (u.step, u.weight is not None)))


def _is_narrow(name: str, state: State) -> bool:
    spec = state.plan.tensors[name].spec
    return spec is not None and spec.num_bits < BYTE


def _weight_unit(weight: PlannedWeight, state: State, executor: TorchExecutor) -> Unit | None:
    name = weight.entry.name
    readers = executor.readers(name)
    if not readers or weight.entry.scale is None or weight.entry.bound or name not in executor.parameters:
        return None
    node = weight.uses[0][0]
    alone = len(weight.uses) == 1 and takes_mean_back(node, state.plan) and not scales_operands(node)
    return Unit(name, readers[0], weight, node.name or "" if alone else "")


def _output_of(node: ir.Node) -> str:
    """Return the value that a layer's kernel writes, behind a fused activation."""
    value = node.outputs[0]
    users = [use.node for use in value.uses()]
    if len(users) == 1 and users[0].op_type in FUSED and not value.is_graph_output():
        value = users[0].outputs[0]
    return value.name or ""


def _first_reader(group: Sequence[str], executor: TorchExecutor) -> int:
    return min((step for name in group for step in executor.readers(name)), default=len(executor.steps))
