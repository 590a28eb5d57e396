"""4-bit weights as ONNX INT4: which are stored so, and that no value changes."""

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.decoding import differing_constant
from qcompiler.errors import QCompileError
from qcompiler.passes import store_int4
from qcompiler.plan import Role
from qcompiler.recipe import MatchRule
from qcompiler.registry import make_pass
from tests.compiling import lowered, outputs, planned, run_passes, samples
from tests.models import conv_net

NET = conv_net(channels=16, batch_norm=False)
BEFORE = ("raise-opset", "insert-qdq", "pack-weights")


def stored(model):
    """Return type -> how many weights of a DequantizeLinear have it."""
    found: dict[str, int] = {}
    for node in model.graph:
        codes = node.inputs[0]
        if node.op_type == "DequantizeLinear" and codes.const_value is not None:
            found[codes.dtype.name] = found.get(codes.dtype.name, 0) + 1
    return found


def test_no_value_changes_and_the_file_gets_smaller():
    state, where = planned(NET, target="qnn", bits="W4A8")
    bytes_ = run_passes(state, where, *BEFORE)
    result = make_pass("store-int4").run(bytes_, where).state
    assert stored(bytes_.model) == {"INT8": 4}
    assert stored(result.model) == {"INT4": 4}
    assert differing_constant(state.model, result.model, state.plan) == ""
    feeds = samples(state.model, 1)[0]
    first, second = (outputs(m, feeds, optimize=False)[0] for m in (bytes_.model, result.model))
    assert np.array_equal(first, second)


def test_every_int4_weight_has_its_zero_point_spelled_out():
    state, where = planned(NET, target="qnn", bits="W4A8")
    model = lowered(state, where).model
    narrow = [n for n in model.graph if n.op_type == "DequantizeLinear" and n.inputs[0].dtype.name == "INT4"]
    assert len(narrow) == 4
    for node in narrow:
        assert node.inputs[2].dtype.name == "INT4"
        zero = node.inputs[2].const_value.numpy()
        assert zero.shape == node.inputs[1].const_value.numpy().shape
        assert not zero.astype(np.int8).any()


def test_a_layer_that_keeps_8_bits_keeps_its_bytes():
    rules = (MatchRule(pattern="^fc$", num_bits=8),)
    state, where = planned(NET, target="qnn", bits="W4A8", rules=rules)
    assert {t.spec.num_bits for t in state.plan.tensors.values() if t.role is Role.WEIGHT} == {4, 8}
    assert stored(lowered(state, where).model) == {"INT4": 3, "INT8": 1}


def test_a_plan_of_8_bits_has_nothing_for_it():
    state, where = planned(NET, target="qnn")
    written = run_passes(state, where, "insert-qdq")
    assert make_pass("store-int4").run(written, where).state is written


def test_the_pipeline_notices_other_codes(monkeypatch):
    right = store_int4._int4

    def wrong(graph, codes, name, taken):
        value = right(graph, codes, name, taken)
        array = value.const_value.numpy()
        value.const_value = replace_array(value.const_value, np.roll(array, 1))
        return value

    def replace_array(tensor, array):
        return type(tensor)(array, dtype=tensor.dtype, name=tensor.name)

    monkeypatch.setattr(store_int4, "_int4", wrong)
    state, where = planned(NET, target="qnn", bits="W4A8")
    with pytest.raises(QCompileError, match="'store-int4' did not write the plan"):
        lowered(state, where)


def test_the_search_of_scales_knows_the_width():
    """4-bit scales are those of 7 steps, not of 127, that cover the weights or a large part of their range."""
    wide, _ = planned(NET, target="qnn")
    narrow, _ = planned(NET, target="qnn", bits="W4A8")
    entry = narrow.plan.tensors["conv1.w"]
    covered = entry.scale * 7 / (wide.plan.tensors["conv1.w"].scale * 127)
    assert (covered > 0.5).all()
    assert (covered < 1.2).all()
    assert entry.levels.tolist() == list(range(-7, 8))
    assert entry.error_db < wide.plan.tensors["conv1.w"].error_db - 15
    assert replace(entry, codes=None).spec.code_range == (-7, 7)
