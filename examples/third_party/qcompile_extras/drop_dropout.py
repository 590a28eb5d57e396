"""drop-dropout: a rewrite pass, written as a function of an onnx-graphsurgeon graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompiler import GraphSurgeonPass

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def drop_dropout() -> GraphSurgeonPass:
    """Return the pass; this is what its entry point names."""
    return GraphSurgeonPass("drop-dropout", remove_dropout)


def remove_dropout(graph: gs.Graph) -> None:
    """Connect what reads a Dropout to what feeds it; a Dropout does nothing once training is over."""
    for node in [node for node in graph.nodes if node.op == "Dropout"]:
        source, result = node.inputs[0], node.outputs[0]
        for consumer in list(result.outputs):
            consumer.inputs = [source if tensor is result else tensor for tensor in consumer.inputs]
    graph.cleanup()
