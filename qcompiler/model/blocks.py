"""Blocks: where a network is as narrow as one value, so that what lies between two such values can be seen alone."""

from __future__ import annotations

import networkx
import onnx_ir as ir

START = ("start", "")


def block_boundaries(model: ir.Model) -> tuple[str, ...]:
    """Return the values through which everything passes on its way to some output, in graph order.

    These are the dominators of the outputs: between two neighbours of a chain lies a block, such as a residual
    block with its shortcut, a module of parallel branches, or a single layer. Constants, graph inputs and values
    inside subgraphs are none; outputs are.
    """
    graph = _value_graph(model)
    parent = networkx.immediate_dominators(graph, START)
    found: set[str] = set()
    for output in model.graph.outputs:
        here = ("value", output.name or "")
        while here != START and here in parent:
            if here[0] == "value":
                found.add(here[1])
            here = parent[here]
    made = [o.name or "" for node in model.graph for o in node.outputs]
    return tuple(name for name in made if name in found)


def _value_graph(model: ir.Model) -> networkx.DiGraph[tuple[str, str]]:
    """Return the graph of values and nodes that depend on the graph's inputs."""
    graph: networkx.DiGraph[tuple[str, str]] = networkx.DiGraph()
    graph.add_node(START)
    for value in model.graph.inputs:
        if value.const_value is None:
            graph.add_edge(START, ("input", value.name or ""))
    for number, node in enumerate(model.graph):
        here = ("node", str(number))
        for read in (v for v in node.inputs if v is not None):
            source = ("value" if read.producer() is not None else "input", read.name or "")
            if source in graph:
                graph.add_edge(source, here)
        if here in graph:
            graph.add_edges_from((here, ("value", o.name or "")) for o in node.outputs)
    return graph


COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def block_outputs(model: ir.Model) -> tuple[str, ...]:
    """Return the boundaries that end a block with weights: behind its activation, its sum or its concatenation.

    Of boundaries that follow each other without a weighted layer between them only the last one counts.
    """
    boundaries = frozenset(block_boundaries(model))
    found = []
    for node in model.graph:
        for value in node.outputs:
            readers = [use.node for use in value.uses()]
            carried_on = len(readers) == 1 and readers[0].op_type not in COMPUTE
            if (value.name or "") in boundaries and not (carried_on and _ends_in(readers[0], boundaries)):
                found.append(value.name or "")
    return tuple(found)


def _ends_in(node: ir.Node, boundaries: frozenset[str]) -> bool:
    return any((value.name or "") in boundaries for value in node.outputs)
