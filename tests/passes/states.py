"""States in which every pass finds what it requires, and what must stay the same when it runs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qcompiler.blockwise import with_form
from qcompiler.lowering import with_aligned_channels
from qcompiler.model.save import to_proto
from qcompiler.plan import CompressionPlan, Precision, Role
from qcompiler.protocols import MatMulForm
from qcompiler.sparsity import parse_sparsity
from qcompiler.state import Context, State
from tests.compiling import PLANNING, context, run_passes, samples, start
from tests.models import FLOAT, build, conv_net, token_net
from tests.passes.sparse import pruned
from tests.passes.tables import sentence_data, sentence_net
from tests.targets.operators import around

BEFORE_LOWERING = ("fold-batch-norm", *PLANNING, "correct-bias")

BEFORE: dict[str, tuple[str, ...]] = {
    "widen-float16": (),
    "fold-batch-norm": (),
    "equalize-channels": ("fold-batch-norm",),
    "smooth-activations": (),
    "choose-matmuls": (),
    "estimate-statistics": ("fold-batch-norm",),
    "place": ("fold-batch-norm",),
    "observe": ("fold-batch-norm", "place"),
    "allocate-bits": ("fold-batch-norm", "place", "observe"),
    "embedding-bits": ("place", "observe"),
    "pack-embeddings": ("place", "observe", "embedding-bits{measured=false}", *PLANNING[2:]),
    "scale-weights": ("fold-batch-norm", "place", "observe"),
    "calibrate": ("fold-batch-norm", "place", "observe", "scale-weights"),
    "solve-codes": ("fold-batch-norm", "place", "observe", "scale-weights"),
    "prune": ("fold-batch-norm", "place", "observe", "scale-weights"),
    "flexor": ("fold-batch-norm", "place", "observe", "scale-weights"),
    "correct-bias": ("fold-batch-norm", *PLANNING),
    "solve-on-prefix": BEFORE_LOWERING,
    "clip-round-search": BEFORE_LOWERING,
    "joint-clip-search": BEFORE_LOWERING,
    "reconstruct-blocks": BEFORE_LOWERING,
    "fine-tune": BEFORE_LOWERING,
    "insert-qdq": BEFORE_LOWERING,
    "align-channels": (*BEFORE_LOWERING, "insert-qdq"),
    "pad-codes": (*BEFORE_LOWERING, "insert-qdq"),
    "raise-opset": BEFORE_LOWERING,
    "store-int4": (*BEFORE_LOWERING, "raise-opset", "insert-qdq"),
    "insert-dynamic": BEFORE_LOWERING,
    "matmul-nbits": BEFORE_LOWERING,
    "pack-weights": BEFORE_LOWERING,
    "sparse-encode": (*BEFORE_LOWERING, "insert-qdq"),
    "pack-xor": (*BEFORE_LOWERING, "flexor", "insert-qdq"),
    "pack-bits": (*BEFORE_LOWERING, "insert-qdq"),
    "pack-constants": BEFORE_LOWERING,
}
"""Pass -> what has run before it."""


def half_net() -> onnx.ModelProto:
    """A convolution in float16: ``x`` (1, 8, 6, 6) -> ``y`` (1, 16, 6, 6), both float16."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((16, 8, 3, 3)) / 8).astype(np.float16)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    kind = onnx.TensorProto.FLOAT16
    shape = [1, 8, 6, 6], [1, 16, 6, 6]
    bias = rng.standard_normal(16).astype(np.float16)
    return build(nodes, [("x", kind, shape[0])], [("y", kind, shape[1])], {"w": weight, "b": bias})


def uneven_net() -> onnx.ModelProto:
    """Conv, Relu, Conv whose channels differ a hundredfold: ``x`` (1, 3, 8, 8) -> ``y`` (1, 4, 8, 8)."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3, 3, 3)).astype(np.float32)
    weight *= np.array([1, 0.01, 0.3, 0.1, 0.02, 1], np.float32)[:, None, None, None]
    constants = {
        "w1": weight,
        "b1": (rng.standard_normal(6) * 0.1).astype(np.float32),
        "w2": rng.standard_normal((4, 6, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="second"),
    ]
    return build(nodes, [("x", FLOAT, [1, 3, 8, 8])], [("y", FLOAT, [1, 4, 8, 8])], constants)


def token_outlier_net() -> onnx.ModelProto:
    """LayerNormalization with a large channel, then two products: ``x`` (1, 5, 32) -> ``y`` and ``z`` (1, 5, 16)."""
    rng = np.random.default_rng(0)
    scale = np.ones(32, np.float32)
    scale[3] = 60
    constants = {"scale": scale, "bias": (0.1 * rng.standard_normal(32)).astype(np.float32)}
    constants |= {name: rng.standard_normal((32, 16)).astype(np.float32) for name in ("v", "w")}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["n"], name="ln"),
        helper.make_node("MatMul", ["n", "v"], ["y"], name="left"),
        helper.make_node("MatMul", ["n", "w"], ["z"], name="right"),
    ]
    outs = [("y", FLOAT, [1, 5, 16]), ("z", FLOAT, [1, 5, 16])]
    return build(nodes, [("x", FLOAT, [1, 5, 32])], outs, constants)


def table_net() -> onnx.ModelProto:
    """Two equal float tables of few values and one of many: ``x`` (1, 32, 32) -> ``y`` (1, 32, 32)."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5, (32, 32)).astype(np.float32)
    constants = {"few": table, "same": table.copy(), "many": rng.standard_normal((32, 32)).astype(np.float32)}
    nodes = [
        helper.make_node("Add", ["x", "few"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "same"], ["b"], name="second"),
        helper.make_node("Add", ["b", "many"], ["y"], name="third"),
    ]
    return build(nodes, [("x", FLOAT, [1, 32, 32])], [("y", FLOAT, [1, 32, 32])], constants)


SEARCHES = frozenset({"solve-on-prefix", "clip-round-search", "joint-clip-search", "fine-tune"})
"""Passes that make good what few bits lose: they get weights of 4."""

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "widen-float16": half_net,
    "embedding-bits": sentence_net,
    "pack-embeddings": sentence_net,
    "equalize-channels": uneven_net,
    "smooth-activations": token_outlier_net,
    "choose-matmuls": token_outlier_net,
    "insert-dynamic": token_net,
    "matmul-nbits": token_net,
    "pack-weights": token_net,
    "sparse-encode": lambda: conv_net(channels=32),
    "pack-bits": lambda: conv_net(channels=32),
    "pack-constants": table_net,
    "pad-codes": lambda: around("Pad"),
}
"""Pass -> a model in which it finds something to do; all others take ``conv_net``."""


FOR = {
    "allocate-bits": ("x86", "W4A8"),
    "solve-on-prefix": ("x86", "W8A4"),
    "clip-round-search": ("x86", "W8A4"),
    "joint-clip-search": ("x86", "W8A4"),
    "raise-opset": ("qnn", "W8A16"),
    "store-int4": ("qnn", "W4A8"),
    "pack-bits": ("x86", "W4A8"),
    "flexor": ("x86", "W0.8A8"),
    "pack-xor": ("x86", "W0.8A8"),
}
"""Pass -> the target that wants it, and the widths that do; all others are tried for ``x86``."""


def before(name: str) -> tuple[State, Context]:
    """Return a state in which a pass finds all it needs and something to do, and the context."""
    proto = MODELS.get(name, lambda: conv_net(channels=16))()
    state = start(proto)
    tables = MODELS.get(name) is sentence_net
    data, accepted = (sentence_data(seed) if tables else samples(state.model, seed=seed, free=3) for seed in (0, 1))
    target, bits = FOR.get(name, ("x86", "W8A8"))
    where = replace(context(target, data, bits=bits), acceptance=accepted)
    if tables:
        where = replace(where, recipe=replace(where.recipe, embedding_bits=(1, 2)))
    if name == "matmul-nbits":
        state = replace(state, plan=with_form(state.plan, "head", MatMulForm(Precision.BLOCKWISE, 8, 32, 4)))
    if name == "prune":
        where = replace(where, recipe=replace(where.recipe, sparsity=parse_sparsity("0.5")))
    if name == "sparse-encode":
        state = pruned(run_passes(state, where, *BEFORE_LOWERING), 0.9)
        return run_passes(state, where, *BEFORE[name][len(BEFORE_LOWERING) :]), where
    state = run_passes(state, where, *BEFORE[name])
    if name == "align-channels":
        state = replace(state, plan=with_aligned_channels(state.plan, "conv1", 4))
    if name in (*SEARCHES, "solve-codes"):
        state = narrowed(state, 4)
    return (run_passes(state, where, "solve-codes") if name in SEARCHES else state), where


def narrowed(state: State, bits: int, only: str = "") -> State:
    """Return a state whose planned weights (or the one named) are to have so many bits."""
    entries = [
        replace(t, spec=replace(t.spec, num_bits=bits))
        for t in state.plan.tensors.values()
        if t.role is Role.WEIGHT and t.spec is not None and only in ("", t.name)
    ]
    return replace(state, plan=state.plan.with_tensors(*entries))


def model_bytes(state: State) -> bytes:
    return to_proto(state.model).SerializeToString(deterministic=True)


def plan_bytes(plan: CompressionPlan) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder))
        return (Path(folder) / "plan.json").read_bytes() + (Path(folder) / "plan.npz").read_bytes()


def statistics_digest(state: State) -> str:
    """Return a digest of all statistics and moments."""
    digest = hashlib.sha256()
    for table in (state.statistics, state.moments):
        for name in sorted(table):
            found: Any = table[name]
            parts = [getattr(found, key) for key in type(found).__slots__]
            digest.update(repr([name, *(np.asarray(p).tobytes() for p in parts)]).encode())
    return digest.hexdigest()


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
