"""Allocation of zeros: totals as asked, no exchange of zeros between layers pays, budgets that cannot hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.errors import UsageError
from qcompiler.quant.sparsity import SHARES, Curve, SparsitySearch, allocated


def curve(name, weights=1000, slope=1.0, power=3.0, fixed=None):
    errors = tuple(float(s) ** power for s in SHARES)
    return Curve(name=name, weights=weights, bits=8, errors=errors, slope=slope, fixed=fixed)


CURVES = (curve("a", 500, 4.0), curve("b", 2000, 1.0), curve("c", 100, 0.1, 6.0), curve("d", 4000, 2.0, 4.0))


def total(curves, shares):
    return sum(c.weights * shares[c.name] for c in curves) / sum(c.weights for c in curves)


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.5, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("uniform", [False, True])
def test_the_sparsity_over_all_layers_is_the_one_asked_for(sparsity, uniform):
    shares = allocated(CURVES, sparsity, uniform=uniform)
    assert total(CURVES, shares) == pytest.approx(sparsity, abs=3e-3 if uniform and sparsity > 0.99 else 1e-9)
    assert all(0 <= s < 1 for s in shares.values())


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.8])
def test_no_exchange_of_zeros_between_two_layers_pays(sparsity):
    shares = allocated(CURVES, sparsity)
    loss = SparsitySearch(curves=CURVES, shares=shares).loss
    for giver in CURVES:
        for taker in CURVES:
            moved = 60.0
            other = dict(shares)
            other[giver.name] -= moved / giver.weights
            other[taker.name] += moved / taker.weights
            if giver is not taker and all(0 <= other[c.name] <= c.highest for c in CURVES):
                assert SparsitySearch(curves=CURVES, shares=other).loss >= loss * (1 - 1e-6)


def test_a_layer_that_matters_more_keeps_more():
    shares = allocated((curve("a", slope=1.0), curve("b", slope=10.0)), 0.5)
    assert shares["a"] > 0.5 > shares["b"]
    assert shares["a"] != shares["b"]
    even = allocated((curve("a", slope=1.0), curve("b", slope=10.0)), 0.5, uniform=True)
    assert even == {"a": 0.5, "b": 0.5}


def test_one_weight_always_stays():
    tiny = curve("tiny", 1)
    shares = allocated((tiny, curve("big", 10_000)), 0.9)
    assert shares["tiny"] == 0.0
    assert curve("two", 2).highest == 0.5


def test_what_a_rule_prescribes_is_kept_and_the_others_make_up_for_it():
    curves = (replace(CURVES[1], fixed=0.0), CURVES[3])
    shares = allocated(curves, 0.5)
    assert shares["b"] == 0.0
    assert total(curves, shares) == pytest.approx(0.5)


@pytest.mark.parametrize(("fixed", "sparsity"), [(0.0, 0.9), (0.9, 0.1)])
def test_rules_that_leave_too_few_weights_are_refused_with_what_can_be_had(fixed, sparsity):
    with pytest.raises(UsageError, match=r"cannot be met: .* allows 0[.\d]* to 0\.\d+; ask for that"):
        allocated((replace(CURVES[1], fixed=fixed), replace(CURVES[3], weights=2000)), sparsity)


def test_a_layer_without_any_effect_is_pruned_first():
    dead = Curve(name="dead", weights=100, bits=8, errors=(0.0,) * len(SHARES))
    shares = allocated((dead, curve("live", 100)), 0.4)
    assert shares["dead"] > 0.79


def test_losses_follow_the_errors_between_the_points_and_rise_from_zero():
    c = curve("a", slope=2.0)
    losses = c.loss(np.linspace(0, 1, 101))
    assert losses[0] == 0.0
    assert (np.diff(losses) >= 0).all()
    for share, error in zip(SHARES, c.errors, strict=True):
        assert float(c.loss(share)) == pytest.approx(2.0 * error)
