"""Passes written as functions of an onnx-graphsurgeon ``Graph``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx
import onnx_ir as ir

from qcompiler.errors import UsageError
from qcompiler.model import dialect, edit, normalize
from qcompiler.model.save import constant_bytes
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    GraphFunction = Callable[[gs.Graph], gs.Graph | None]

_LIMIT_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class GraphSurgeonPass:
    """A pass that runs a function on the model as an onnx-graphsurgeon ``Graph``.

    The function edits the graph in place, or returns another one. What graphsurgeon's import and export lose
    is restored for everything that keeps its name: metadata, doc strings, domain and version of the model,
    quantization annotations, types it does not know, and which constants are the very same tensors.

    An entry point of the group ``qcompiler.passes`` names a function that returns the pass::

        def drop_dropout() -> Pass:
            return GraphSurgeonPass("drop-dropout", remove_dropout_nodes)

    Attributes:
        name: the name on the command line, in kebab case.
        function: takes the graph, edits it and returns nothing, or returns a new one.
        kind: REWRITE promises the same outputs, which is checked; LOWER does not.
    """

    name: str
    function: GraphFunction
    kind: PassKind = PassKind.REWRITE
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset(Fact) - {Fact.LOWERED}

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with the edited model; the same state if the function changed nothing.

        Raises:
            UsageError: graphsurgeon is not installed, the model is too large for it, or the function fails.
        """
        surgeon = _graphsurgeon(self.name)
        if constant_bytes(state.model) > _LIMIT_BYTES:
            raise UsageError(
                f"pass '{self.name}': graphsurgeon holds all constants in memory, and this model has over "
                f"{_LIMIT_BYTES // 2**30} GiB; leave the pass out with --skip-pass {self.name}"
            )
        try:
            graph = surgeon.import_onnx(_self_contained(state.model))
            returned = self.function(graph)
            exported = surgeon.export_onnx(graph if returned is None else returned)
            model = dialect.from_proto(exported, Path())
        except Exception as error:  # the function is the user's, and may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"pass '{self.name}': its function or graphsurgeon failed: {reason}") from error
        _hoist_constants(model, state.model)
        _restore(model, state.model)
        normalize.sort_nodes(model)
        normalize.unique_names(model)
        changed = _describe(model.graph) != _describe(state.model.graph)
        report = PassReport(name=self.name, changed=changed, metrics=_metrics(state.model, model))
        return PassResult(replace(state, model=model) if changed else state, report)


def _graphsurgeon(name: str) -> Any:  # noqa: ANN401 - the library has no types
    try:
        import onnx_graphsurgeon
    except ImportError as error:
        raise UsageError(
            f"pass '{name}' needs onnx-graphsurgeon; install it with: pip install 'qcompiler[graphsurgeon]'"
        ) from error
    return onnx_graphsurgeon


def _self_contained(model: ir.Model) -> onnx.ModelProto:
    """Return a model as protobuf with its external constants inside."""
    copy = edit.clone(model)
    edit.load_external(copy)
    return dialect.to_proto(copy)


def _hoist_constants(model: ir.Model, original: ir.Model) -> None:
    """Bring constants back to the graph that owned them; graphsurgeon copies them to where they are used."""
    homes = {name: place for place, graph in _graphs_by_place(original) for name in graph.initializers}
    graphs = dict(_graphs_by_place(model))
    for place, graph in graphs.items():
        for name, copy in tuple(graph.initializers.items()):
            home = graphs.get(homes.get(name, place), graph)
            if home is graph or copy.const_value is None:
                continue
            if name not in home.initializers:
                edit.add_initializer(home, name, copy.const_value)
            copy.replace_all_uses_with(home.initializers[name])
            del graph.initializers[name]


def _graphs_by_place(model: ir.Model) -> Iterator[tuple[tuple[str, int], ir.Graph]]:
    """Yield all graphs, each with the name of its node and its number there; the main graph with ("", 0)."""
    yield ("", 0), model.graph
    for node in model.graph.all_nodes():
        for number, graph in enumerate(edit.subgraphs(node)):
            yield (node.name or "", number), graph


def _restore(model: ir.Model, original: ir.Model) -> None:
    """Give back to a model what the round trip lost."""
    model.domain, model.model_version = original.domain, original.model_version
    model.doc_string = original.doc_string
    model.metadata_props.update(original.metadata_props)
    model.graph.doc_string = original.graph.doc_string
    _restore_common(model.graph, original.graph)
    nodes = {n.name: n for n in original.graph.all_nodes() if n.name}
    for node in model.graph.all_nodes():
        if node.name in nodes:
            node.doc_string = nodes[node.name].doc_string
            _restore_common(node, nodes[node.name])
    values = edit.values_by_name(original)
    for name, value in edit.values_by_name(model).items():
        if name in values:
            value.doc_string = values[name].doc_string
            value.type = value.type or values[name].type
            _restore_common(value, values[name])
            _share_tensor(value, values[name].const_value)


def _restore_common(new: Any, old: Any) -> None:  # noqa: ANN401 - nodes, values and graphs share no base
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)


def _share_tensor(value: ir.Value, original: ir.TensorProtocol | None) -> None:
    """Let a constant that did not change hold the very tensor it held before."""
    tensor = value.const_value
    if tensor is None or original is None or tensor.dtype != original.dtype or tensor.shape != original.shape:
        return
    if edit.tensor_bytes(tensor) == edit.tensor_bytes(original):
        value.const_value = original


def _describe(graph: ir.Graph) -> list[object]:
    """Return what makes graphs the same: nodes, inputs, outputs, and which tensors are the constants."""
    interface = [v.name for v in graph.inputs], [v.name for v in graph.outputs]
    constants = sorted((name, id(v.const_value)) for name, v in graph.initializers.items())
    nodes = []
    for node in graph:
        names = [v and v.name for v in node.inputs], [v.name for v in node.outputs]
        attributes = sorted((name, _describe_attribute(a)) for name, a in node.attributes.items())
        nodes.append((node.domain, node.op_type, node.name, names, attributes))
    return [interface, constants, nodes]


def _describe_attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.GRAPH:
        return str(_describe(attribute.as_graph()))
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {tensor.shape} {edit.tensor_bytes(tensor)!r}"
    return str(attribute.value)


def _metrics(before: ir.Model, after: ir.Model) -> tuple[Metric, ...]:
    counts = (("nodes before", before), ("nodes after", after))
    return tuple(Metric(name, sum(1 for _ in m.graph.all_nodes()), "nodes") for name, m in counts)
