from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from qcompiler.model.blocks import block_boundaries, block_outputs
from tests.compiling import start
from tests.models import FLOAT, branch_net, build, conv_net, dense_net


def test_boundaries_are_where_everything_passes_through():
    model = start(conv_net(batch_norm=False)).model
    assert block_boundaries(model) == ("c1", "a1", "s", "g", "f", "scores")


def test_blocks_end_behind_their_activation_or_their_sum():
    model = start(conv_net(batch_norm=False)).model
    assert block_outputs(model) == ("a1", "f", "scores")


def test_a_chain_is_bounded_by_every_value():
    model = start(dense_net()).model
    made = [v.name for n in model.graph for v in n.outputs]
    assert list(block_boundaries(model)) == made


def test_no_branch_is_a_boundary():
    model = start(branch_net()).model
    found = block_boundaries(model)
    outputs = {v.name for v in model.graph.outputs}
    assert outputs <= set(found)


def token_blocks():
    """Token ids, a mask that both blocks read, shapes computed from values inside, two residual blocks."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="words"),
        helper.make_node("Cast", ["mask"], ["seen"], name="seen", to=FLOAT),
        helper.make_node("Unsqueeze", ["seen", "last"], ["wide"], name="wide"),
        helper.make_node("Sub", ["one", "wide"], ["hidden"], name="hidden"),
        helper.make_node("Shape", ["words"], ["size"], name="size"),
    ]
    constants = {
        "table": rng.standard_normal((11, 6)).astype(np.float32),
        "last": np.asarray([2], np.int64),
        "one": np.asarray(1, np.float32),
    }
    value = "words"
    for block in range(2):
        constants[f"w{block}"] = rng.standard_normal((6, 6)).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", [value, f"w{block}"], [f"p{block}"], name=f"p{block}"),
            helper.make_node("Reshape", [f"p{block}", "size"], [f"r{block}"], name=f"r{block}"),
            helper.make_node("Mul", [f"r{block}", "hidden"], [f"m{block}"], name=f"m{block}"),
            helper.make_node("Add", [f"m{block}", value], [f"s{block}"], name=f"s{block}"),
        ]
        value = f"s{block}"
    inputs = [(n, TensorProto.INT64, ["batch", "length"]) for n in ("ids", "mask")]
    return build(nodes, inputs, [("s1", FLOAT, ["batch", "length", 6])], constants)


def test_masks_and_shapes_do_not_tie_the_blocks_of_a_transformer_together():
    assert block_outputs(start(token_blocks()).model) == ("words", "s0", "s1")
    assert block_boundaries(start(token_blocks()).model) == ("words", "s0", "s1")
