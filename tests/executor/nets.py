"""Planned states and stacked samples for tests of the executor."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from qcompiler.executor.batching import batch_axes, stack
from qcompiler.executor.executor import Tensors, TorchExecutor
from qcompiler.executor.loss import DistillationLoss
from qcompiler.executor.oracle import Limits, LossOracle
from qcompiler.state import Context, State
from tests.compiling import PLANNING, Fixed, planned, samples
from tests.models import FLOAT, build

PLAN = ("fold-batch-norm", *PLANNING, "correct-bias")
ROWS = 6


def plan_of(proto: onnx.ModelProto, target: str = "x86") -> tuple[State, Context]:
    """Return a planned state with corrected biases, and its context."""
    return planned(proto, target=target, passes=PLAN)


def rows_for(state: State, executor: TorchExecutor, count: int = ROWS, seed: int = 7) -> tuple[Fixed, Tensors]:
    """Return samples, one by one and stacked."""
    data = samples(state.model, count, seed=seed)
    return data, stack(data.samples, executor)


def oracle_of(proto: onnx.ModelProto, limits: Limits | None = None) -> tuple[LossOracle, TorchExecutor, Tensors]:
    """Return an oracle of a planned model."""
    state, _ = plan_of(proto)
    executor = TorchExecutor(state.model)
    _, feeds = rows_for(state, executor)
    axes = batch_axes(executor)
    loss = DistillationLoss(executor, feeds, axes)
    return LossOracle(state, executor, feeds, loss, axes, limits), executor, feeds


def fixed_batch_net(seed: int = 0) -> onnx.ModelProto:
    """A network whose file fixes the batch at 1, with a channel shuffle: ``x`` (1, 4, 4, 4) -> ``y`` (1, 16, 2)."""
    rng = np.random.default_rng(seed)
    constants = {
        "w": (rng.standard_normal((8, 4, 3, 3)) / 6).astype(np.float32),
        "v": (rng.standard_normal((8, 8, 1, 1)) / 3).astype(np.float32),
        "rows": np.array([4, 2, 16]),
        "halves": np.array([2, -1, 4, 4, 4]),
        "zero": np.int64(0),
        "one": np.int64(1),
        "boxes": np.array([1, -1, 2]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Reshape", ["r", "rows"], ["s1"], name="shuffle1"),
        helper.make_node("Transpose", ["s1"], ["s2"], name="shuffle2", perm=[1, 0, 2]),
        helper.make_node("Reshape", ["s2", "halves"], ["s3"], name="shuffle3"),
        helper.make_node("Gather", ["s3", "zero"], ["a"], name="left", axis=0),
        helper.make_node("Gather", ["s3", "one"], ["b"], name="right", axis=0),
        helper.make_node("Concat", ["b", "a"], ["j"], name="join", axis=1),
        helper.make_node("Conv", ["j", "v"], ["d"], name="mix"),
        helper.make_node("Transpose", ["d"], ["t"], name="last", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "boxes"], ["y"], name="boxes"),
    ]
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return build(nodes, [("x", FLOAT, [1, 4, 4, 4])], [("y", FLOAT, [1, 64, 2])], arrays)


def mixing_net() -> onnx.ModelProto:
    """A network whose output depends on the whole batch: ``x`` (N, 4) -> ``y`` (N, 4)."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], name="mean", axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"], name="center"),
    ]
    return build(nodes, [("x", FLOAT, ["N", 4])], [("y", FLOAT, ["N", 4])])
