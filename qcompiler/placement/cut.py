"""Measured placement: the split of a network between integers and float with the least predicted cost.

Every node costs what was measured on the side where it runs, every value that crosses between the sides costs
a conversion, and the cheapest split is a minimum cut. It is kept only if the whole model, measured, costs less.
Costs are microseconds, or instructions on an emulated board; one cut never mixes them.

Source: Picard and Queyranne, "Selected applications of minimum cuts in networks" (1982), for the reduction.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import networkx
import onnx_ir as ir

from qcompiler.plan import Precision
from qcompiler.state import State

INTEGER = "integer"
FLOAT = "float"
INT, FLT = "int", "flt"
INFINITE = 1e12
"""More than any cost: the instructions of a minute on a fast core are fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryCost:
    """What a value costs where it crosses between integers and float, per element and at least."""

    per_element: float
    least: float = 0.0

    def of(self, value: ir.Value) -> float:
        """Return the cost of one value; unknown dimensions count as 1."""
        dims = [d if isinstance(d, int) else 1 for d in value.shape] if value.shape is not None else []
        return max(self.least, self.per_element * max(1, math.prod(dims)))

    def times(self, factor: float) -> BoundaryCost:
        """Return a boundary of so many times the cost; infinity forbids boundaries."""
        return replace(self, per_element=self.per_element * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A split of the nodes that may run in integers.

    Attributes:
        to_float: nodes that are to leave the integers, in graph order.
        predicted: predicted cost of this split.
        all_integer / all_float: predicted cost of both extremes.
    """

    to_float: tuple[str, ...]
    predicted: float
    all_integer: float
    all_float: float


def node_signature(node: ir.Node) -> str:
    """Return what the latency of a node depends on, as a digest: operator, shapes and attributes."""
    shapes = [_shape(v) for v in (*node.inputs, *node.outputs)]
    attributes = sorted(f"{k}={a.value}" for k, a in node.attributes.items() if a.type != ir.AttributeType.GRAPH)
    return hashlib.sha256(repr((node.domain, node.op_type, shapes, attributes)).encode()).hexdigest()[:32]


def _shape(value: ir.Value | None) -> str:
    if value is None:
        return "none"
    return "?" if value.shape is None else ",".join(str(d) for d in value.shape)


class Splitter:
    """Finds the cheapest split of a planned state.

    Args:
        state: a planned state; nodes with an integer precision may go either way, all others stay in float.
        costs: (node, "integer" or "float") -> cost. A node without an entry costs nothing on that side,
            which is what a node that the runtime fuses away costs.
        boundary: the cost of a crossing value.
        pinned: nodes that stay in integers, whatever that costs.
    """

    def __init__(
        self,
        state: State,
        costs: Mapping[tuple[str, str], float],
        boundary: BoundaryCost,
        pinned: frozenset[str] = frozenset(),
    ) -> None:
        self._state, self._costs, self._boundary = state, costs, boundary
        self._nodes = list(state.model.graph)
        self._leader = {n.name or "": self._leader_of(n) for n in self._nodes}
        self._pinned = {self._leader[n] for n in pinned if n in self._leader}

    def movable(self) -> list[str]:
        """Return the nodes that may run on either side, in graph order."""
        names = [n.name or "" for n in self._nodes if self._is_integer(n)]
        return [n for n in names if self._leader[n] not in self._pinned]

    def predict(self, to_float: frozenset[str]) -> float:
        """Return the predicted cost with some nodes in float."""
        total = 0.0
        for node in self._nodes:
            name = node.name or ""
            side = INTEGER if self._is_integer(node) and self._leader[name] not in to_float else FLOAT
            total += self._cost(name, side)
        return total + sum(self._boundary.of(v) for v in self._crossing(to_float))

    def cut(self) -> Cut:
        """Return the split with the least predicted cost; ties go to the integers."""
        graph = self._network()
        _, (integer_side, _) = networkx.minimum_cut(graph, INT, FLT)
        return self.of([n for n in self.movable() if self._leader[n] not in integer_side])

    def of(self, to_float: Sequence[str]) -> Cut:
        """Return a given split with what is predicted of it."""
        return Cut(
            to_float=tuple(to_float),
            predicted=self.predict(frozenset(to_float)),
            all_integer=self.predict(frozenset()),
            all_float=self.predict(frozenset(self.movable())),
        )

    def _network(self) -> networkx.DiGraph[str]:
        """Return the flow network: integers on the source's side, float on the sink's."""
        graph: networkx.DiGraph[str] = networkx.DiGraph()
        graph.add_nodes_from((INT, FLT))
        for node in self._nodes:
            name = self._leader[node.name or ""]
            if self._is_integer(node):
                # A hair more than nothing on the float side breaks ties towards the integers.
                _add(graph, INT, name, self._cost(node.name or "", FLOAT) + 1e-6)
                _add(graph, name, FLT, self._cost(node.name or "", INTEGER))
                if name in self._pinned:
                    _add(graph, INT, name, INFINITE)
            else:
                _add(graph, name, FLT, INFINITE)
        for value, maker, readers in self._values():
            cost = self._boundary.of(value)
            down, up = f"{value.name} leaves", f"{value.name} enters"
            _add(graph, maker, down, cost)
            _add(graph, up, maker, cost)
            for reader in readers:
                _add(graph, down, reader, INFINITE)
                _add(graph, reader, up, INFINITE)
        return graph

    def _values(self) -> list[tuple[ir.Value, str, list[str]]]:
        """Return every value with its maker and its readers, as far as these are different nodes."""
        found = []
        inside = set(self._nodes)
        makers = [(v, FLT) for v in self._state.model.graph.inputs]
        makers += [(v, self._leader[n.name or ""]) for n in self._nodes for v in n.outputs]
        for value, maker in makers:
            readers = {self._leader[u.node.name or ""] for u in value.uses() if u.node in inside}
            if value.is_graph_output() or any(u.node not in inside for u in value.uses()):
                readers.add(FLT)
            readers.discard(maker)
            if readers:
                found.append((value, maker, sorted(readers)))
        return found

    def _crossing(self, to_float: frozenset[str]) -> list[ir.Value]:
        integer = {self._leader[n.name or ""] for n in self._nodes if self._is_integer(n)}
        leaders = integer - {self._leader[n] for n in to_float}
        crossing = []
        for value, maker, readers in self._values():
            sides = {reader in leaders for reader in readers}
            if (maker in leaders and False in sides) or (maker not in leaders and True in sides):
                crossing.append(value)
        return crossing

    def _is_integer(self, node: ir.Node) -> bool:
        decision = self._state.plan.nodes.get(node.name or "")
        kinds = (Precision.INTEGER, Precision.MOVE, Precision.DYNAMIC, Precision.BLOCKWISE)
        return decision is not None and decision.precision in kinds

    def _leader_of(self, node: ir.Node) -> str:
        """Return the node that decides for a fused activation, else the node itself."""
        decision = self._state.plan.nodes.get(node.name or "")
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        fused = decision is not None and before is not None and decision.reason == f"fused into {before.name}"
        return before.name or "" if fused and before is not None else node.name or ""

    def _cost(self, name: str, side: str) -> float:
        return self._costs.get((name, side), 0.0)


def _add(graph: networkx.DiGraph[str], tail: str, head: str, capacity: float) -> None:
    """Add capacity to an edge, which may be there already."""
    before = graph.edges[tail, head]["capacity"] if graph.has_edge(tail, head) else 0.0
    graph.add_edge(tail, head, capacity=before + capacity)


CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput"})
