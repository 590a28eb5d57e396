"""Questions about graphs."""

from __future__ import annotations

from pathlib import Path

import networkx
import onnx_ir as ir

from qcompiler.model.load import load_model
from qcompiler.model.regions import shared_scale_groups, to_digraph
from tests import models


def test_groups_are_components_in_the_order_named() -> None:
    a, b, c, d, e, f = (ir.Value(name=n) for n in "abcdef")
    assert shared_scale_groups([(c, d), (a, b), (b, e), (d, f)]) == ((c, d, f), (a, b, e))
    assert shared_scale_groups([(a, a)]) == ((a,),)
    assert shared_scale_groups([]) == ()


def test_values_of_the_same_name_are_not_the_same() -> None:
    a, b, c = (ir.Value(name="v") for _ in range(3))
    assert shared_scale_groups([(a, b), (c, c)]) == ((a, b), (c,))


def test_digraph(tmp_path: Path) -> None:
    graph = load_model(models.save(models.conv_net(), tmp_path)).model.graph
    derived = to_digraph(graph)
    names = {(a.name, b.name): [v.name for v in d["values"]] for a, b, d in derived.edges(data=True)}
    assert names[("act1", "dw")] == names[("act1", "add")] == ["a1"]
    assert networkx.is_directed_acyclic_graph(derived)
    assert [n.name for n in derived] == [n.name for n in graph]


def test_digraph_sees_what_subgraphs_read(tmp_path: Path) -> None:
    model = models.branch_net()
    model.graph.node.insert(0, models.helper.make_node("Relu", ["x0"], ["x"], name="before"))
    model.graph.input[0].name = "x0"
    graph = load_model(models.save(model, tmp_path)).model.graph
    derived = to_digraph(graph)
    assert [(a.name, b.name) for a, b in derived.edges] == [("before", "if")]
    assert [v.name for v in derived.edges[graph[0], graph[1]]["values"]] == ["x"]
