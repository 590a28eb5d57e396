"""Questions about the shape of a graph, answered by networkx over a derived graph."""

from __future__ import annotations

from collections.abc import Iterable

import networkx
import onnx_ir as ir


def shared_scale_groups(ties: Iterable[tuple[ir.Value, ir.Value]]) -> tuple[tuple[ir.Value, ...], ...]:
    """Return the groups of values that must share a scale, given pairs that must.

    Groups are connected components; groups, and values within one, come in the order they were named.
    """
    graph = networkx.Graph()
    graph.add_edges_from(ties)
    order = {value: position for position, value in enumerate(graph)}
    components = networkx.connected_components(graph)
    return tuple(tuple(sorted(group, key=order.__getitem__)) for group in components)
