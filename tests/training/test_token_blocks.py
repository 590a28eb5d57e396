"""Blocks of models that read token ids: masks and shapes are carried along, whatever the number of rows."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper

from qcompiler.executor.batching import Counted, Entangled, batch_axes
from qcompiler.executor.binding import EMPTY
from qcompiler.executor.executor import TorchExecutor
from qcompiler.training.blocks import Streams, blocks_of
from qcompiler.training.compressor import LevelCompressor
from tests.compiling import samples, start
from tests.models import FLOAT, build, run
from tests.training.lowbits import low_bit_state

WIDTH = 6


def net(*, places: bool = False, rows: int = 11):
    """``ids`` and ``mask`` (batch, length) -> ``y`` (batch, length, 6); each block reshapes by a computed shape.

    With places, a mask is looked up in the flattened batch, as older exporters write it.
    """
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.standard_normal((rows, WIDTH)).astype(np.float32),
        "last": np.asarray([2], np.int64),
        "flat": np.asarray([-1], np.int64),
        "zero": np.asarray(0, np.int64),
        "step": np.asarray(1, np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("Shape", ["words"], ["size"], name="size"),
        helper.make_node("Cast", ["mask"], ["plain"], name="plain", to=FLOAT),
    ]
    seen = "plain"
    if places:
        nodes += [
            helper.make_node("Shape", ["ids"], ["ids_size"], name="ids_size"),
            helper.make_node("Size", ["ids"], ["count"], name="count"),
            helper.make_node("Range", ["zero", "count", "step"], ["range"], name="range"),
            helper.make_node("Reshape", ["range", "ids_size"], ["places"], name="places"),
            helper.make_node("Reshape", ["plain", "flat"], ["line"], name="line"),
            helper.make_node("Gather", ["line", "places"], ["looked"], name="looked"),
        ]
        seen = "looked"
    nodes.append(helper.make_node("Unsqueeze", [seen, "last"], ["wide"], name="wide"))
    value = "words"
    for block in range(3):
        constants[f"w{block}"] = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        out = "y" if block == 2 else f"s{block}"
        nodes += [
            helper.make_node("MatMul", [value, f"w{block}"], [f"p{block}"], name=f"p{block}"),
            helper.make_node("Reshape", [f"p{block}", "size"], [f"r{block}"], name=f"r{block}"),
            helper.make_node("Mul", [f"r{block}", "wide"], [f"m{block}"], name=f"m{block}"),
            helper.make_node("Add", [f"m{block}", value], [out], name=out),
        ]
        value = out
    inputs = [(n, TensorProto.INT64, ["batch", "length"]) for n in ("ids", "mask")]
    return build(nodes, inputs, [("y", FLOAT, ["batch", "length", WIDTH])], constants)


def feeds(rows, length=4):
    rng = np.random.default_rng(rows)
    return {"ids": rng.integers(0, 11, (rows, length)), "mask": rng.integers(0, 2, (rows, length))}


def tensors(arrays):
    return {n: torch.from_numpy(a) for n, a in arrays.items()}


def test_lengths_and_batches_may_differ_from_run_to_run():
    proto = net(places=True)
    executor = TorchExecutor(start(proto).model)
    assert executor.fallbacks == {}
    for rows, length in ((1, 3), (4, 7), (2, 1)):
        given = feeds(rows, length)
        found = executor.run(tensors(given))["y"].numpy()
        np.testing.assert_allclose(found, run(proto, given)[0], rtol=1e-5, atol=1e-6)


def test_axes_tell_counts_and_places_from_rows():
    axes = batch_axes(TorchExecutor(start(net(places=True)).model))
    assert axes["size"] == Counted((True, False, False))
    assert axes["count"] == Counted((True,))
    assert axes["places"] == axes["range"] == Entangled()
    assert axes["looked"] == axes["words"] == axes["y"] == 0


def test_a_count_is_taken_to_other_numbers_of_rows():
    counted = Counted((True, False))
    assert counted.at(torch.tensor([12, 7]), 4, 10).tolist() == [30, 7]
    assert Counted((True,)).at(torch.tensor(6), 3, 1).tolist() == 2


def test_blocks_run_on_parts_of_the_rows_and_give_what_the_whole_model_gives():
    proto = net()
    executor = TorchExecutor(start(proto).model)
    axes = batch_axes(executor)
    blocks = blocks_of(executor, ("y",), axes)
    assert [b.name for b in blocks] == ["s0", "s1", "y"]
    assert [b.outputs for b in blocks] == [("s0",), ("s1",), ("y",)]
    assert set(blocks[1].inputs) == {"s0", "size", "wide"}
    given = feeds(7)
    streams = Streams(executor, axes, tensors(given), ("y",), at_once=3)
    for block in blocks:
        streams.enter(block)
        part = streams.part(streams.found, torch.tensor([5, 1]))
        made = executor.run(part, block.outputs, start=block.start, stop=block.stop)
        assert torch.equal(made[block.name], streams.targets[block.name][[5, 1]])
        streams.leave(block, EMPTY)
    np.testing.assert_allclose(streams.exact["y"].numpy(), run(proto, given)[0], rtol=1e-5, atol=1e-6)


def test_tables_that_are_looked_up_are_trained_with_the_whole_network_only():
    proto = net(rows=400)
    state, _ = low_bit_state(proto, 2, samples(start(proto).model, count=4, free=5))
    executor = TorchExecutor(state.model)
    first = blocks_of(executor, ("y",), batch_axes(executor))[0]
    for nodes, trained in ((first.nodes, {"w0"}), (None, {"table", "w0", "w1", "w2"})):
        plan = LevelCompressor(state, executor, nodes=nodes).planned(state.plan)
        assert {name for name, entry in plan.tensors.items() if entry is not state.plan.tensors[name]} == trained


def test_no_block_begins_where_places_in_the_batch_are_alive():
    proto = net(places=True)
    reader = helper.make_node("Gather", ["line", "places"], ["late"], name="late")
    last = next(n for n in proto.graph.node if n.name == "m1")
    last.input[1] = "late_wide"
    at = list(proto.graph.node).index(last)
    proto.graph.node.insert(at, helper.make_node("Unsqueeze", ["late", "last"], ["late_wide"], name="late_wide"))
    proto.graph.node.insert(at, reader)
    executor = TorchExecutor(start(proto).model)
    assert [b.name for b in blocks_of(executor, ("y",), batch_axes(executor))] == ["s1", "y"]
