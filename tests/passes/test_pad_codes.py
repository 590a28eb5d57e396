"""A Pad of codes: the same values, one Pad, and no step back to float."""

import numpy as np
import pytest

from qcompiler.registry import make_pass
from tests.compiling import lowered, outputs, planned, run_passes, samples, start
from tests.targets.operators import OPERATOR, around

NET = around("Pad")


def pad_of(model):
    (node,) = [n for n in model.graph if n.name == OPERATOR]
    return node


@pytest.mark.parametrize("bits", ["W8A8", "W8A4"])
def test_values_stay(bits):
    state, where = planned(NET, bits=bits)
    before = run_passes(state, where, "insert-qdq")
    after = make_pass("pad-codes").run(before, where).state
    assert pad_of(before.model).inputs[0].dtype.name == "FLOAT"
    assert pad_of(after.model).inputs[0].dtype.name == "UINT8"
    assert pad_of(after.model).inputs[2].dtype.name == "UINT8"
    feeds = samples(start(NET).model, 1, seed=3)[0]
    first, second = (outputs(m, feeds, optimize=False)[0] for m in (before.model, after.model))
    assert np.array_equal(first, second)


def test_it_is_for_the_targets_that_want_it():
    assert pad_of(lowered(*planned(NET, target="x86")).model).inputs[0].dtype.name == "UINT8"
    assert pad_of(lowered(*planned(NET, target="qnn")).model).inputs[0].dtype.name == "FLOAT"


def test_there_is_no_pad_of_16_bit_codes():
    state, where = planned(NET, target="qnn", bits="W8A16")
    written = run_passes(state, where, "raise-opset", "insert-qdq")
    assert make_pass("pad-codes").run(written, where).state is written
