"""Predicted losses of layers and widths, and the divergence that they are in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.mixed_precision.divergence import HOPELESS, Divergence, kl_divergence, log_softmax
from qcompiler.mixed_precision.sensitivity import sensitivities
from qcompiler.mixed_precision.widths import choosable, with_widths
from qcompiler.model.edit import replace_constant
from qcompiler.plan import Role
from qcompiler.recipe import MatchRule, Recipe
from tests.compiling import planned, start
from tests.models import conv_net, dense_net, token_net

WIDTHS = (2, 3, 4, 5, 6, 8)


def measured(proto, passes=("place", "observe"), **options):
    state, where = planned(proto, passes=passes, **options)
    layers = choosable(state, where.recipe)
    return state, where, layers, sensitivities(state, layers, [WIDTHS] * len(layers), where)


@pytest.fixture(scope="module")
def found():
    return measured(conv_net(channels=16, batch_norm=False))


def test_every_layer_at_every_width(found):
    _, _, layers, sensitivity = found
    assert [layer.uses[0].name for layer in layers] == ["conv1", "dw", "pw", "fc"]
    assert [i.weights for i in sensitivity.items] == [layer.size for layer in layers]
    for item in sensitivity.items:
        assert item.bits == WIDTHS
        assert all(a >= b > 0 for a, b in zip(item.loss, item.loss[1:], strict=False))


def test_the_prediction_ranks_and_that_is_measured(found):
    sensitivity = found[3]
    assert sensitivity.checked == 16
    assert sensitivity.trials == 4 + 16
    assert sensitivity.correlation > 0.8


def test_a_layer_that_matters_more_costs_more():
    proto = dense_net(width=16)
    name = next(t.name for t in proto.graph.initializer if len(t.dims) == 2)
    items = measured(proto)[3].items
    assert name in {i.name for i in items}
    assert len({round(i.loss_at(4), 9) for i in items}) == len(items)


def test_without_data_layers_are_compared_by_their_own_error():
    state, where = planned(conv_net(batch_norm=False), passes=("place",))
    layers = choosable(state, where.recipe)
    found = sensitivities(state, layers, [WIDTHS] * len(layers), replace(where, calibration=None))
    assert found.trials == 0
    assert found.correlation is None
    assert "nothing was measured" in found.unit
    assert all(0 < item.loss_at(3) < 0.2 for item in found.items)


def test_a_single_width_is_not_measured():
    state, where = planned(conv_net(batch_norm=False), passes=("place", "observe"))
    layers = choosable(state, where.recipe)
    found = sensitivities(state, layers, [(8,)] * len(layers), where)
    assert found.trials == 0
    assert [i.loss for i in found.items] == [(0.0,)] * len(layers)


def test_tables_do_not_take_part_and_rules_fix_widths():
    state, _ = planned(token_net(words=600), passes=("place",))
    names = {t.name for t in state.plan.tensors.values() if t.role is Role.WEIGHT}
    layers = choosable(
        state, Recipe(rules=(MatchRule(pattern="fc", num_bits=5), MatchRule(pattern=".", scheme="auto")))
    )
    assert {layer.name for layer in layers} < names
    assert all(u.op_type in ("MatMul", "Gemm") for layer in layers for u in layer.uses)
    state, _ = planned(conv_net(batch_norm=False), passes=("place",))
    fixed = {c.uses[0].name: c.fixed for c in choosable(state, Recipe(rules=(MatchRule(pattern="^fc$", num_bits=5),)))}
    assert fixed == {"conv1": None, "dw": None, "pw": None, "fc": 5}


def test_another_width_drops_what_was_decided_on_the_old_one():
    state, where = planned(conv_net(batch_norm=False))
    first, second = (c.name for c in choosable(state, where.recipe)[:2])
    plan = with_widths(state.plan, {first: 4, second: 8}, {first: "why"}, "me")
    assert (plan.tensors[first].spec.num_bits, plan.tensors[first].scale) == (4, None)
    assert (plan.tensors[first].reason, plan.tensors[first].decided_by) == ("why", ("place", "me"))
    assert plan.tensors[first].spec.axis == state.plan.tensors[first].spec.axis
    assert plan.tensors[second].scale is state.plan.tensors[second].scale


def test_divergence_of_class_scores_is_that_of_probabilities():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 5))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    assert kl_divergence(a, b) == pytest.approx(np.sum(p * np.log(p / q), -1).mean())
    assert kl_divergence(a, a + 7) == pytest.approx(0, abs=1e-12)
    assert np.isfinite(log_softmax(np.asarray([[1e4, 0.0]]))).all()


def test_divergence_of_a_model_from_itself_is_nothing_and_a_broken_one_is_hopeless():
    state, where = planned(conv_net(batch_norm=False), passes=("place",))
    loss = Divergence(state.model, where.calibration, ["scores"], 1)
    assert "KL" in loss.unit
    assert loss(state.model) == pytest.approx(0, abs=1e-9)
    other = start(conv_net(seed=1, batch_norm=False)).model
    assert 0 < loss(other) < HOPELESS
    assert Divergence(state.model, where.calibration, [], 1)(other) > 0.1
    broken = start(conv_net(batch_norm=False)).model
    value = next(iter(broken.graph.initializers.values()))
    replace_constant(value, np.full(value.const_value.shape.numpy(), np.nan, np.float32))
    assert loss(broken) == HOPELESS
