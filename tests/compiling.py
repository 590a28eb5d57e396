"""Small compilations for tests: states, contexts, passes by name, and the graph that the runtime makes of a model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.model.dialect import from_proto
from qcompiler.model.normalize import normalize
from qcompiler.model.save import to_proto
from qcompiler.pipeline import Pipeline
from qcompiler.plan import CompressionPlan
from qcompiler.recipe import MatchRule, Recipe, parse_bits
from qcompiler.registry import load_target, make_pass
from qcompiler.runtime.sessions import open_session
from qcompiler.state import Context, State

Feeds = dict[str, NDArray[Any]]

PLANNING = ("place", "observe", "scale-weights", "calibrate{method=minmax}")


@dataclass(frozen=True, eq=False)
class Fixed:
    """A dataset of given samples."""

    samples: Sequence[Feeds]
    source: str = "made for a test"
    fingerprint: str = "0" * 64
    preprocessing: str = ""
    notes: tuple[str, ...] = ()
    rows_per_sample: int = 1
    row_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Feeds:
        return self.samples[index]


def start(proto: onnx.ModelProto) -> State:
    """Return the state a compilation of a model starts from."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return State(model=normalize(from_proto(copy, Path()), Path("model.onnx")).model, plan=CompressionPlan())


def samples(model: ir.Model, count: int = 4, seed: int = 0, free: int = 1) -> Fixed:
    """Return standard normal samples for the float inputs of a model; unknown dimensions become ``free``."""
    rng = np.random.default_rng(seed)

    def one() -> Feeds:
        feeds: Feeds = {}
        for value in model.graph.inputs:
            shape = [d if isinstance(d, int) else free for d in value.shape or ()]
            dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
            drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            feeds[value.name or ""] = np.asarray(drawn).astype(dtype)
        return feeds

    return Fixed([one() for _ in range(count)])


def context(
    target: str = "x86", data: Fixed | None = None, rules: Sequence[MatchRule] = (), bits: str = "W8A8"
) -> Context:
    """Return the context of a compilation for a target."""
    weights, activations = parse_bits(bits)
    recipe = Recipe(rules=tuple(rules), weight_bits=weights, activation_bits=activations)
    return Context(target=load_target(target), recipe=recipe, calibration=data)


def run_passes(state: State, where: Context, *names: str, check: bool = True) -> State:
    """Return the state behind some passes."""
    return Pipeline(tuple(make_pass(n) for n in names), where.calibration, check).run(state, where)[0]


def planned(
    proto: onnx.ModelProto,
    *,
    target: str = "x86",
    data: Fixed | None = None,
    rules: Sequence[MatchRule] = (),
    passes: Sequence[str] = PLANNING,
    bits: str = "W8A8",
) -> tuple[State, Context]:
    """Return a model with a complete plan, and the context it was made in."""
    state = start(proto)
    where = context(target, data if data is not None else samples(state.model), rules, bits)
    return run_passes(state, where, *passes), where


def lowered(state: State, where: Context) -> State:
    """Return the state with its plan written into the graph by the target's passes."""
    return run_passes(state, where, *where.target.lower_passes())


def compiled(proto: onnx.ModelProto, **options: Any) -> ir.Model:
    """Return the compiled model; options are those of ``planned``."""
    return lowered(*planned(proto, **options)).model


def serialized(model: ir.Model | onnx.ModelProto) -> bytes:
    """Return the bytes of a model."""
    proto = to_proto(model) if isinstance(model, ir.Model) else model
    return proto.SerializeToString()


def outputs(
    model: ir.Model | onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], *, optimize: bool = True
) -> list[Any]:
    """Return what ONNX Runtime computes, with its optimizations or node by node."""
    content = serialized(model)
    found: list[Any] = open_session(content, optimize=optimize).run(None, dict(feeds))
    return found


def runtime_graph(model: ir.Model | onnx.ModelProto) -> onnx.GraphProto:
    """Return the graph that ONNX Runtime makes of a model, with all its optimizations."""
    content = serialized(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(content, optimized_path=path)
        return onnx.load(path).graph


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)


def runtime_ops(model: ir.Model | onnx.ModelProto) -> list[str]:
    """Return the operator types of the graph that ONNX Runtime makes of a model, inner graphs included."""
    return [node.op_type for node in every_node(runtime_graph(model))]
