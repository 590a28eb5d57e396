"""Convert models of old opsets, and keep the result only if it computes the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from qcompiler.model import edit
from qcompiler.model.logs import quiet_libraries
from qcompiler.model.probe import same_outputs, shorten
from qcompiler.model.save import constant_bytes, save_model

MIN_OPSET = 13
"""Per-channel QuantizeLinear begins here."""

TARGET_OPSETS = (17, 13)
"""Tried in this order."""

_TOLERANCE = 1e-5
_SIZE_LIMIT_BYTES = 2**30
_IR_VERSION = 8
"""The IR version that belongs to opset 17 (and reads 13)."""
_NARROW_OPSET, _NARROW_IR_VERSION = 21, 10
"""INT4 begins with these two."""


def convert_opset(model: ir.Model, original: Path) -> tuple[ir.Model, str]:
    """Return the model at a newer opset and a note, or the model as it is and the reason.

    The result is run beside the original file on made-up inputs and dropped if an output differs.

    Args:
        model: without local functions, its nodes named.
        original: the file it was read from.
    """
    opset = model.opset_imports[""]
    stays = f"opset {opset} stays, and with it only what that opset can express"
    if constant_bytes(model) > _SIZE_LIMIT_BYTES:
        return model, f"{stays}: its constants exceed {_SIZE_LIMIT_BYTES // 2**30} GiB"
    reason = ""
    for target in TARGET_OPSETS:
        candidate = edit.clone(model)
        reason = _convert(candidate, target) or _compare(candidate, original)
        if not reason:
            return candidate, f"opset {opset} converted to {target}; outputs compared equal on made-up inputs"
    return model, f"{stays}: {reason}"


def at_opset(model: ir.Model, opset: int) -> tuple[ir.Model, str]:
    """Return a copy of a model at a newer opset and "", or the model itself and why it could not be converted.

    Nodes that the conversion only carries over keep their names. Nothing is run.
    """
    candidate = edit.clone(model)
    reason = _convert(candidate, opset)
    return (model, reason) if reason else (candidate, "")


def _convert(model: ir.Model, target: int) -> str:
    """Convert in place; return "" or why it failed."""
    from onnxscript.version_converter import ConvertVersionPass

    before = edit.clone(model)
    with quiet_libraries():
        try:
            ConvertVersionPass(target_version=target, fallback=True)(model)
        except Exception as error:  # the converter raises what its adapters raise
            return f"conversion to opset {target} failed ({shorten(str(error))})"
    if model.opset_imports.get("") != target:
        return f"the converter knows no way to opset {target}"
    _carry_metadata(before, model)
    model.ir_version = max(model.ir_version, _IR_VERSION if target < _NARROW_OPSET else _NARROW_IR_VERSION)
    return ""


def _carry_metadata(before: ir.Model, after: ir.Model) -> None:
    """Give converted nodes the metadata of those they came from.

    That is the node with the same output; where the converter renamed it, the only vanished node that read
    the same first input.
    """
    made = {o.name: n for n, _ in edit.all_nodes(before) for o in n.outputs}
    kept = {o.name for n, _ in edit.all_nodes(after) for o in n.outputs}
    vanished: dict[str, list[ir.Node]] = {}
    for node, _ in edit.all_nodes(before):
        if not any(o.name in kept for o in node.outputs):
            vanished.setdefault(_first_input(node), []).append(node)
    for node, _ in edit.all_nodes(after):
        same = [made[o.name] for o in node.outputs if o.name in made] or vanished.get(_first_input(node), [])
        if len(set(same)) == 1:
            node.metadata_props.update(same[0].metadata_props)


def _first_input(node: ir.Node) -> str:
    return (node.inputs[0].name or "") if node.inputs and node.inputs[0] is not None else ""


def _compare(model: ir.Model, original: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        path = Path(folder) / "converted.onnx"
        save_model(model, path)
        reason = same_outputs(original, path, _TOLERANCE)
    return reason and f"the converted model is not known to compute the same ({reason})"
