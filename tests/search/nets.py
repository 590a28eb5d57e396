"""Networks with shared grids, and planned states of few bits for searches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from qcompiler.executor.binding import binding_of
from qcompiler.executor.setup import SearchSetup, prepare_search
from qcompiler.plan import Role
from qcompiler.registry import make_pass
from qcompiler.state import Context, State
from qcompiler.training.measure import held_out_loss
from tests.compiling import samples, start
from tests.models import FLOAT, build
from tests.training.lowbits import low_bit_state


def fire_net(seed: int = 0) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, two Convs joined by a Concat, Conv, pooling, Gemm: ``x`` (N, 3, 12, 12) -> ``y`` (N, 6)."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w1": drawn(16, 3, 3, 3),
        "b1": drawn(16),
        "w2": drawn(8, 16, 1, 1),
        "w3": drawn(8, 16, 3, 3),
        "w4": drawn(16, 16, 3, 3),
        "b4": drawn(16),
        "w5": drawn(6, 16),
        "b5": drawn(6),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", **pads),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["m"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["m", "w2"], ["c2"], name="left"),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["m", "w3"], ["c3"], name="right", **pads),
        helper.make_node("Relu", ["c3"], ["r3"], name="relu3"),
        helper.make_node("Concat", ["r2", "r3"], ["j"], name="join", axis=1),
        helper.make_node("Conv", ["j", "w4", "b4"], ["c4"], name="last", **pads),
        helper.make_node("Relu", ["c4"], ["r4"], name="relu4"),
        helper.make_node("GlobalAveragePool", ["r4"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w5", "b5"], ["y"], name="fc", transB=1),
    ]
    return build(nodes, [("x", FLOAT, ["N", 3, 12, 12])], [("y", FLOAT, ["N", 6])], constants)


def searched_state(
    proto: onnx.ModelProto, bits: int = 3, activations: int = 8, rows: int = 24
) -> tuple[State, Context]:
    """Return a planned state of few bits with corrected biases, and a context with samples."""
    state, where = low_bit_state(proto, bits, samples(start(proto).model, count=rows), activations)
    where = replace(where, acceptance=samples(state.model, count=32, seed=99))
    return make_pass("correct-bias").run(state, where).state, where


def setup_of(state: State, where: Context) -> SearchSetup:
    setup = prepare_search(state, where)
    assert not isinstance(setup, str), setup
    return setup


def distance(state: State, where: Context) -> float:
    """Return how far a state is from the float model on samples that no search has seen."""
    setup = setup_of(state, where)
    return held_out_loss(setup, binding_of(state, setup.executor))


def with_solved_codes(state: State) -> State:
    """Return a state in which every weight has recorded codes that are no nearest rounding."""
    rng = np.random.default_rng(0)
    entries = []
    for entry in state.plan.tensors.values():
        if entry.role is Role.WEIGHT and entry.levels is not None:
            value = next(v for n in state.model.graph for v in n.inputs if v is not None and v.name == entry.name)
            shape = tuple(value.const_value.shape)
            entries.append(replace(entry, codes=rng.choice(entry.levels, shape).astype(np.int8)))
    return replace(state, plan=state.plan.with_tensors(*entries))
