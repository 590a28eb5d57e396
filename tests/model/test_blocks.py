from __future__ import annotations

from qcompiler.model.blocks import block_boundaries, block_outputs
from tests.compiling import start
from tests.models import branch_net, conv_net, dense_net


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
