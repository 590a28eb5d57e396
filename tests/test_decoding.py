"""What lowered constants decode to, held against the plan; the passes' own tests tamper with each kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.decoding import differing_constant, float_weight
from qcompiler.errors import QCompileError
from qcompiler.lowering import lazy_codes, weight_codes
from qcompiler.plan import QuantSpec, Role, TensorPlan
from qcompiler.recipe import MatchRule
from tests.compiling import lowered, planned
from tests.models import FLOAT, branch_net, build, conv_net, dense_net, token_net

NETS = {
    "conv": conv_net(batch_norm=False),
    "dense": dense_net(),
    "token": token_net(words=600),
    "branches": branch_net(),
}


def written(name: str, **options):
    state, where = planned(NETS[name], **options)
    return state, lowered(state, where)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scheme", ["auto", "static", "weight_only"])
def test_what_the_passes_write_is_what_was_planned(name, scheme):
    state, after = written(name, rules=(MatchRule(pattern=".", scheme=scheme),))
    assert differing_constant(state.model, after.model, state.plan) == ""
    assert float_weight(after.model, state.plan) == ""


def test_what_is_not_lowered_is_not_looked_at():
    state, _ = written("conv")
    assert differing_constant(state.model, state.model, state.plan) == ""
    assert float_weight(state.model, state.plan) == "conv1"


@pytest.mark.parametrize("name", ["conv", "dense", "token"])
def test_every_single_weight_is_looked_at(name):
    state, after = written(name)
    for entry in state.plan.tensors.values():
        if entry.role is not Role.WEIGHT or entry.scale is None:
            continue
        codes = None if entry.codes is None else np.roll(entry.codes, 1)
        other = replace(entry, scale=entry.scale * np.float32(1.01), codes=codes)
        problem = differing_constant(state.model, after.model, state.plan.with_tensors(other))
        assert f"weight '{entry.name}'" in problem


def test_every_single_activation_is_looked_at():
    state, after = written("conv")
    for entry in state.plan.tensors.values():
        if entry.role is Role.ACTIVATION:
            for change in ({"scale": entry.scale * np.float32(1.01)}, {"zero_point": entry.zero_point + 1}):
                other = state.plan.with_tensors(replace(entry, **change))
                assert f"activation '{entry.name}'" in differing_constant(state.model, after.model, other)


def test_a_correction_that_is_missing_is_noticed():
    state, after = written("conv")
    shift = TensorPlan(name="dw:bias", role=Role.BIAS, correction=np.full(8, 0.1))
    assert "bias of node 'dw'" in differing_constant(state.model, after.model, state.plan.with_tensors(shift))


# -- codes ------------------------------------------------------------------------------------------------


def entry(**changes) -> TensorPlan:
    values = {
        "name": "w",
        "role": Role.WEIGHT,
        "spec": QuantSpec(num_bits=8, signed=True, symmetric=True, axis=0),
        "scale": np.array([0.5, 0.25], np.float32),
        "zero_point": np.zeros(2, np.int32),
    }
    return TensorPlan(**{**values, **changes})


WEIGHT = np.array([[1.0, -0.6], [100.0, 0.3]], np.float32)


def test_codes_are_the_nearest_or_the_recorded_ones():
    assert weight_codes(WEIGHT, entry()).tolist() == [[2, -1], [127, 1]]
    recorded = np.array([[1, 2], [3, 4]], np.int8)
    assert weight_codes(WEIGHT, entry(codes=recorded)).tolist() == recorded.tolist()
    assert weight_codes(WEIGHT.astype(np.float16), entry()).dtype == np.int8


@pytest.mark.parametrize("missing", ["scale", "spec", "zero_point"])
def test_a_weight_without_a_grid_is_refused(missing):
    with pytest.raises(QCompileError, match="'w' is planned without a grid"):
        weight_codes(WEIGHT, entry(**{missing: None}))


def test_codes_are_computed_when_they_are_asked_for():
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transB=1)
    state, _ = planned(build([node], [("x", FLOAT, [1, 2])], [("y", FLOAT, [1, 2])], {"w": WEIGHT}))
    value = state.model.graph.initializers["w"]
    compute = lazy_codes(value, entry())
    assert compute().numpy().tolist() == [[2, -1], [127, 1]]
    with pytest.raises(QCompileError, match="is no constant"):
        lazy_codes(state.model.graph.inputs[0], entry())()


def test_weights_that_are_stored_anew_keep_their_values():
    """A pass that gets a graph whose weights are integers already is held against these."""
    from qcompiler.lowering import weight_of
    from tests.compiling import run_passes
    from tests.models import conv_net

    state, where = planned(conv_net(channels=32), bits="W3A8")
    before = run_passes(state, where, "insert-qdq").model
    after = run_passes(state, where, "insert-qdq", "pack-bits").model
    assert any(weight_of(v) for v in before.graph.initializers.values())
    assert differing_constant(before, after, state.plan) == ""
    stream = max(
        (v for v in after.graph.initializers.values() if v.dtype is ir.DataType.UINT8),
        key=lambda v: v.const_value.nbytes,
    )
    changed = stream.const_value.numpy().copy()
    changed[0] ^= 1
    stream.const_value = ir.tensor(changed)
    assert "does not decode to its planned values" in differing_constant(before, after, state.plan)
