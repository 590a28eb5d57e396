"""Bring a model into the normal form that every pass relies on.

In normal form there are no local functions; constants are initializers, and initializers are not inputs;
every node and value has a name of its own, over all subgraphs; nodes are in topological order and all of them
are needed; shapes are inferred where that is possible; the opset is 13 or newer where conversion is safe.
Names, types and shapes of the model's inputs and outputs stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qcompiler.model import edit
from qcompiler.model.convert import MIN_OPSET, convert_opset
from qcompiler.model.logs import quiet_libraries
from qcompiler.model.probe import shorten

_ORIGIN = "qcompiler.origin"
_CONSTANTS_IR_VERSION = 4
"""Before it, every constant had to be an input too."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normalized:
    """A model in normal form, where its nodes came from, and what was changed."""

    model: ir.Model
    origin: Mapping[str, str]
    notes: tuple[str, ...]


def normalize(model: ir.Model, path: Path) -> Normalized:
    """Return the model in normal form; the given one is used up.

    Args:
        model: as read from ``path``.
        path: the file it was read from, which an opset conversion is compared with.
    """
    for node, _ in edit.all_nodes(model):
        node.metadata_props[_ORIGIN] = node.name or ""
    model, notes = _inline_functions(model)
    notes += _fix_inputs(model)
    declared = [(v.type, v.shape) for v in _interface(model)]
    sort_nodes(model)
    unique_names(model)
    lift_constants(model)
    drop_identities(model)
    drop_unused(model)
    if 0 < model.opset_imports.get("", 0) < MIN_OPSET:
        model, note = convert_opset(model, path)
        notes.append(note)
        unique_names(model)
        lift_constants(model)
    infer_shapes(model)
    for value, (type_, shape) in zip(_interface(model), declared, strict=True):
        value.type, value.shape = type_, shape
    origin = _take_origin(model)
    return Normalized(model=model, origin=origin, notes=tuple(notes))


def _interface(model: ir.Model) -> tuple[ir.Value, ...]:
    return (*model.graph.inputs, *model.graph.outputs)


def _inline_functions(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Return the model without local functions; with them, and a note, where they cannot be inlined."""
    if not model.functions:
        return model, []
    count = len(model.functions)
    inlined = edit.clone(model)
    for function in inlined.functions.values():
        for node in function.all_nodes():
            node.name = node.name or node.op_type
    try:
        common.InlinePass()(inlined)
    except ValueError as error:
        return model, [f"local functions stay ({count}): {shorten(str(error))}"]
    inlined.functions.clear()
    return inlined, [f"local functions inlined: {count}"]


def _fix_inputs(model: ir.Model) -> list[str]:
    """Make constants of the inputs that have a default value."""
    overridable = [v.name for v in model.graph.inputs if v.is_initializer()]
    if not overridable:
        return []
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, _CONSTANTS_IR_VERSION)
    return [f"inputs with a default value became constants: {_some(overridable)}"]


def _some(names: list[str | None]) -> str:
    listed = ", ".join(f"'{n}'" for n in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"


def sort_nodes(model: ir.Model) -> None:
    """Bring the nodes of every graph into topological order, where they are not."""
    common.TopologicalSortPass()(model)


def unique_names(model: ir.Model) -> None:
    """Give every node and value a name that no other has, in any graph; inputs and outputs keep theirs."""
    fixed = [*model.graph.inputs, *model.graph.outputs]
    values, nodes = {v.name for v in fixed if v.name}, set[str]()
    seen = set(fixed)
    for graph in model.graphs():
        produced = (o for n in graph for o in n.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *produced):
            if value in seen:
                continue
            seen.add(value)
            if value.name != "" or value.uses():
                value.name = edit.fresh_name(values, value.name or _value_name(value))
        for node in graph:
            node.name = edit.fresh_name(nodes, node.name or node.op_type)


def _value_name(value: ir.Value) -> str:
    producer = value.producer()
    return "value" if producer is None else f"{producer.op_type}_output"


def lift_constants(model: ir.Model) -> None:
    """Make initializers of numeric Constant nodes, in the graph where they are.

    A Constant whose value is an output of its graph stays: an output must come from a node.
    """
    for node, graph in edit.all_nodes(model):
        if node.op_type != "Constant" or node.domain or node.outputs[0].is_graph_output():
            continue
        tensor = _constant_tensor(node)
        if tensor is not None:
            output = node.outputs[0]
            value = edit.add_initializer(graph, output.name or node.op_type, tensor)
            output.replace_all_uses_with(value)
            graph.remove(node, safe=True)


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the value of a Constant node, None for kinds that stay nodes (strings, sparse tensors)."""
    if set(node.attributes) & {"sparse_value", "value_string", "value_strings"}:
        return None
    return ir.convenience.get_const_tensor(node.outputs[0])


def drop_identities(model: ir.Model) -> None:
    """Remove Identity nodes within one graph, unless input or output of the graph depend on them."""
    for node, graph in edit.all_nodes(model):
        if node.op_type != "Identity" or node.domain or len(node.inputs) != 1:
            continue
        value, output = node.inputs[0], node.outputs[0]
        if value is None or output.is_graph_output():
            continue
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and constants that no output needs, and opsets that no node needs."""
    common.RemoveUnusedNodesPass()(model)
    for graph in model.graphs():
        for name, value in tuple(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
    common.RemoveUnusedOpsetsPass()(model)


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types that follow from the inputs', as far as that goes.

    Nothing is filled in where a value inside has a type that ``onnx_ir`` does not know.
    """
    with quiet_libraries(), suppress(ir.serde.SerdeError):
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _take_origin(model: ir.Model) -> dict[str, str]:
    """Return node name -> name in the file, and drop what nodes and values carry that only costs bytes."""
    origin = {}
    for node, _ in edit.all_nodes(model):
        origin[node.name or ""] = node.metadata_props.get(_ORIGIN, "")
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.doc_string = None
            value.metadata_props.clear()
    return origin
