"""Opset 21 where a plan needs it, and nowhere else."""

import numpy as np
import pytest

from qcompiler.errors import ModelError
from qcompiler.passes import raise_opset
from qcompiler.registry import make_pass
from tests.compiling import lowered, outputs, planned, samples, start
from tests.models import conv_net

NET = conv_net(batch_norm=False)


@pytest.mark.parametrize(("bits", "opset"), [("W8A8", 17), ("W8A16", 21), ("W4A8", 21), ("W4A16", 21)])
def test_only_new_widths_raise_the_opset(bits, opset):
    state, where = planned(NET, target="qnn", bits=bits)
    result = make_pass("raise-opset").run(state, where)
    assert result.report.changed is (opset == 21)
    model = result.state.model
    assert model.opset_imports[""] == opset
    assert (model.ir_version >= 10) is (opset == 21)
    assert [n.name for n in model.graph] == [n.name for n in state.model.graph]
    feeds = samples(state.model, 1)[0]
    np.testing.assert_array_equal(outputs(model, feeds, optimize=False)[0], outputs(NET, feeds, optimize=False)[0])


def test_a_model_that_is_new_enough_stays():
    state, where = planned(conv_net(batch_norm=False, opset=21), target="qnn", bits="W4A16")
    assert make_pass("raise-opset").run(state, where).state is state


def test_a_model_that_cannot_be_raised_is_refused(monkeypatch):
    monkeypatch.setattr(raise_opset, "at_opset", lambda model, opset: (model, "the converter knows no way"))
    state, where = planned(NET, target="qnn", bits="W8A16")
    with pytest.raises(
        ModelError, match=r"W8A16 needs opset 21, the model has 17: the converter knows no way; use --b"
    ):
        make_pass("raise-opset").run(state, where)


def test_the_written_activations_have_16_bits():
    state, where = planned(NET, target="qnn", bits="W8A16")
    model = lowered(state, where).model
    kinds = {n.inputs[2].dtype.name for n in model.graph if n.op_type == "QuantizeLinear"}
    assert kinds == {"UINT16"}
    feeds = samples(start(NET).model, 1, seed=5)[0]
    expected, coarse = (outputs(m, feeds, optimize=False)[0] for m in (NET, model))
    fine_steps = max(float(t.scale) for t in state.plan.tensors.values() if t.spec is not None and not t.spec.signed)
    assert fine_steps < float(np.abs(expected).max()) / 2**12
    assert 0 < np.abs(coarse - expected).max() < 0.05 * np.abs(expected).max()
