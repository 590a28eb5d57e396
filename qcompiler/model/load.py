"""Load a model file safely and bring it into the normal form that the passes work on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompiler.errors import ModelError
from qcompiler.model.edit import all_nodes
from qcompiler.model.fingerprint import files_sha256
from qcompiler.model.nonfinite import check_finite
from qcompiler.model.normalize import normalize
from qcompiler.model.probe import RuntimeProbe, shorten
from qcompiler.model.read import read_source, to_ir
from qcompiler.records import ModelFacts

_QUANTIZED_PREFIXES = ("QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize")
_QUANTIZED_OPS = frozenset(("ConvInteger", "MatMulInteger", "MatMulNBits", "QGemm", "GatherBlockQuantized"))
_NOT_PARAMETERS = frozenset((ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING))
"""Shapes, indices, masks and words."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model in normal form (see ``normalize``) and where it came from.

    Attributes:
        model: the normalized model; big external constants are read only when somebody asks for them.
        facts: the original file, as the report states it; ``opset`` is the one after conversion.
        origin: node name in ``model`` -> node name in the file, "" where the file's node had none.
        notes: what loading changed or noticed, one line each.
    """

    model: ir.Model
    facts: ModelFacts
    origin: Mapping[str, str]
    notes: tuple[str, ...]


def load_model(path: Path) -> LoadedModel:
    """Return the model in a file, checked and in normal form.

    ONNX Runtime is the judge of what a model is: it loads the file in a child process, and a file that it
    refuses is refused with its reason.

    Raises:
        ModelError: one line on what is wrong with the file, and what to do.
        RuntimeUnavailable: ONNX Runtime itself does not start.
    """
    source = read_source(path)
    opset = max((o.version for o in source.proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    with RuntimeProbe(path, source.total_bytes) as probe:
        try:
            model = to_ir(source)
        except Exception as error:  # whatever onnx_ir stumbles over: the runtime's reason says more
            probe.verdict(opset)
            raise ModelError(
                f"{path}: onnxruntime loads it, it cannot be read ({shorten(str(error))}); export it again"
            ) from error
        probe.verdict(opset)
    nodes = sum(1 for _ in all_nodes(model))
    ir_version = model.ir_version
    result = normalize(model, path)
    notes = (*result.notes, *check_finite(result.model, path))
    model = result.model
    facts = ModelFacts(
        file_name=path.name,
        sha256=files_sha256((source.path, *source.external)),
        file_bytes=source.total_bytes,
        opset=opset,
        ir_version=ir_version,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        nodes=nodes,
        parameters=_parameters(model),
        inputs=signature(model.graph.inputs),
        outputs=signature(model.graph.outputs),
        already_quantized=any(map(_is_quantized, model.graph.all_nodes())),
        notes=notes,
    )
    return LoadedModel(model=model, facts=facts, origin=result.origin, notes=notes)


def _parameters(model: ir.Model) -> int:
    constants = [v.const_value for g in model.graphs() for v in g.initializers.values()]
    return sum(t.size for t in constants if t is not None and t.dtype not in _NOT_PARAMETERS)


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type in _QUANTIZED_OPS or node.op_type.startswith(_QUANTIZED_PREFIXES)


def signature(values: Iterable[ir.Value]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return (name, type, dimensions) of inputs or outputs; an unknown dimension is its symbol or "?"."""
    return tuple((v.name or "", _type_name(v), _dimensions(v.shape)) for v in values)


def _type_name(value: ir.Value) -> str:
    if value.type is None:
        return "map"
    name = value.type.dtype.name.lower()
    if isinstance(value.type, ir.TensorType):
        return name
    return f"{type(value.type).__name__.removesuffix('Type').lower()}({name})"


def _dimensions(shape: ir.Shape | None) -> tuple[str, ...]:
    if shape is None:
        return ("?",)
    return tuple(str(d) if isinstance(d, int) else (d.value or "?") for d in shape)
