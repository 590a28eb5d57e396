"""Questions about the shape of a graph, answered by networkx over a derived graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import networkx
import onnx_ir as ir

from qcompiler.model.edit import subgraphs


def shared_scale_groups(ties: Iterable[tuple[ir.Value, ir.Value]]) -> tuple[tuple[ir.Value, ...], ...]:
    """Return the groups of values that must share a scale, given pairs that must.

    Groups are connected components; groups, and values within one, come in the order they were named.
    """
    graph = networkx.Graph()
    graph.add_edges_from(ties)
    order = {value: position for position, value in enumerate(graph)}
    components = networkx.connected_components(graph)
    return tuple(tuple(sorted(group, key=order.__getitem__)) for group in components)


def to_digraph(graph: ir.Graph) -> networkx.DiGraph[ir.Node]:
    """Return the nodes of a graph, with an edge wherever one reads what another makes.

    Nodes of subgraphs are not in it: what they read counts for the node that holds them. The attribute
    ``values`` of an edge lists what flows there.
    """
    derived: networkx.DiGraph[ir.Node] = networkx.DiGraph()
    derived.add_nodes_from(graph)
    for reader in graph:
        for value in _read_by(reader):
            maker = value.producer()
            if maker is None or maker.graph is not graph:
                continue
            if not derived.has_edge(maker, reader):
                derived.add_edge(maker, reader, values=[])
            if value not in derived.edges[maker, reader]["values"]:
                derived.edges[maker, reader]["values"].append(value)
    return derived


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs(node):
        yield from graph.outputs
        for inner in graph:
            yield from _read_by(inner)
