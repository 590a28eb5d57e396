"""Blocks: where a network is as narrow as one value, so that what lies between two such values can be seen alone."""

from __future__ import annotations

import networkx
import onnx_ir as ir

from qcompiler.model.weights import is_float_constant

START = ("start", "")

SIZES = frozenset({"Shape", "Size"})
"""Operators whose outputs depend on the size of their input alone."""


def block_boundaries(model: ir.Model) -> tuple[str, ...]:
    """Return the values through which everything passes on its way to some output, in graph order.

    These are the dominators of the outputs: between two neighbours of a chain lies a block, such as a residual
    block with its shortcut, a module of parallel branches, or a single layer. Constants, graph inputs and values
    inside subgraphs are none; outputs are. Shapes and what follows from integers alone, such as the masks that every
    block of a Transformer reads, do not count: they are known wherever a block begins.
    """
    graph = _value_graph(model)
    parent = networkx.immediate_dominators(graph, START)
    found = {output.name or "" for output in model.graph.outputs}
    for output in model.graph.outputs:
        here = ("value", output.name or "")
        while here != START and here in parent:
            if here[0] == "value":
                found.add(here[1])
            here = parent[here]
    made = [o.name or "" for node in model.graph for o in node.outputs]
    return tuple(name for name in made if name in found)


def _value_graph(model: ir.Model) -> networkx.DiGraph[tuple[str, str]]:
    """Return the graph of values and nodes that depend on the graph's float inputs, or on weights that ids look up."""
    graph: networkx.DiGraph[tuple[str, str]] = networkx.DiGraph()
    graph.add_node(START)
    for value in model.graph.inputs:
        if value.const_value is None and (value.dtype is None or value.dtype.is_floating_point()):
            graph.add_edge(START, ("input", value.name or ""))
    for number, node in enumerate(model.graph):
        here = ("node", str(number))
        if node.op_type in SIZES:
            continue
        for read in (v for v in node.inputs if v is not None):
            source = ("value" if read.producer() is not None else "input", read.name or "")
            if source in graph:
                graph.add_edge(source, here)
        if here not in graph and any(_is_weight(v) for v in node.inputs):
            graph.add_edge(START, here)
        if here in graph:
            graph.add_edges_from((here, ("value", o.name or "")) for o in node.outputs)
    return graph


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and is_float_constant(value) and value.shape is not None and len(value.shape) > 1


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
