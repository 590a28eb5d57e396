"""Methods of pruning: zeros as asked, errors in the order in which the methods are worth their time, patterns."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import QCompileError
from qcompiler.quant.gram import PairedAccumulator, damped
from qcompiler.quant.pruning import METHODS, Choice, Pattern, error_of, refitted
from qcompiler.quant.solvers.descent import polish
from qcompiler.quant.solvers.problem import LayerProblem, Solution, output_error


def toy(groups=2, rows=6, inputs=24, seed=0):
    """Return weights and the damped H of correlated inputs."""
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((groups, 500, inputs)) @ rng.standard_normal((groups, inputs, inputs))
    return rng.standard_normal((groups, rows, inputs)), damped(columns.swapaxes(1, 2) @ columns / 500)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dropped", [0, 1, 100, 287])
def test_exactly_as_many_weights_go_as_asked(name, dropped):
    weight, gram = toy()
    found = METHODS[name](weight, gram, Choice(dropped))
    assert int((~found.mask).sum()) == dropped
    assert not found.weight[~found.mask].any()
    assert np.isfinite(found.weight).all()


def test_of_equal_weights_exactly_as_many_go():
    found = METHODS["magnitude"](np.ones((1, 4, 5)), np.eye(5)[None], Choice(7))
    assert int((found.weight == 0).sum()) == 7


def test_second_order_leaves_less_error_and_the_alternating_method_least():
    for seed in range(3):
        weight, gram = toy(seed=seed)
        errors = [error_of(weight, m(weight, gram, Choice(200)).weight, gram) for m in METHODS.values()]
        assert errors[0] > errors[1] > errors[2] > 0


def test_the_surgeon_without_correlation_is_the_magnitude_times_the_input():
    rng = np.random.default_rng(0)
    weight, power = rng.standard_normal((1, 5, 8)), rng.uniform(0.1, 10, 8)
    found = METHODS["surgeon"](weight, np.diag(power)[None], Choice(20))
    score = np.square(weight) * power
    assert score[found.mask].min() > score[~found.mask].max()
    np.testing.assert_allclose(found.weight[found.mask], weight[found.mask], rtol=1e-9)


def test_refitted_weights_solve_the_normal_equations_of_their_mask():
    weight, gram = toy()
    mask = np.random.default_rng(1).random(weight.shape) < 0.3
    found = refitted(weight, gram, mask)
    for group in range(len(weight)):
        for row in range(weight.shape[1]):
            kept = np.flatnonzero(mask[group, row])
            wanted = (gram[group] @ weight[group, row])[kept]
            exact = np.linalg.solve(gram[group][np.ix_(kept, kept)], wanted)
            np.testing.assert_allclose(found[group, row, kept], exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_pattern_keeps_as_many_of_every_stretch_of_channels(name):
    weight, gram = toy(groups=1, inputs=8 * 3)
    found = METHODS[name](weight, gram, Choice(72, Pattern(2, 4), kernel=3))
    by_kernel = found.mask.reshape(6, 8, 3).swapaxes(1, 2).reshape(6, 3, 2, 4)
    assert (by_kernel.sum(-1) == 2).all()


def test_channels_that_fill_no_stretch_stay():
    assert METHODS["magnitude"](np.ones((1, 1, 6)), np.eye(6)[None], Choice(0, Pattern(2, 4))).mask[0, 0, 4:].all()


@pytest.mark.parametrize(("kept", "of"), [(0, 4), (4, 4), (5, 4)])
def test_impossible_patterns_are_refused(kept, of):
    with pytest.raises(QCompileError, match="no such pattern"):
        Pattern(kept, of)


def test_a_target_follows_the_model_on_changed_inputs():
    rng = np.random.default_rng(3)
    followed = rng.standard_normal((1, 4000, 6))
    mixing = np.eye(6) + 0.2 * rng.standard_normal((6, 6))
    changed = followed @ mixing
    sums = PairedAccumulator(1, 6)
    for part in range(4):
        sums.add(followed[:, part::4], changed[:, part::4])
    moments = sums.result()
    weight, gram = rng.standard_normal((1, 3, 6)), moments.changed.centered()
    target = moments.target(weight, gram, np.zeros((1, 6)), centered=True)
    exact = weight @ np.linalg.inv(mixing).T
    np.testing.assert_allclose(target, (weight + exact) / 2, atol=1e-6)  # half the way
    np.testing.assert_allclose(moments.mean, followed.mean(1), atol=1e-12)


def test_polishing_leaves_what_was_pruned():
    weight, gram = toy()
    levels = np.arange(-127, 128).astype(np.int8)
    scale = np.abs(weight).max(2) / 127
    problem = LayerProblem(weight=weight, gram=gram, levels=levels, scale=scale, floor=np.full(scale.shape, 1e-9))
    kept = np.random.default_rng(2).random(weight.shape) < 0.4
    start = Solution((np.rint(weight / scale[..., None]) * kept).astype(np.int8), scale)
    found = polish(problem, start, kept=kept)
    assert not found.codes[~kept].any()
    assert output_error(weight, found, gram) < output_error(weight, start, gram)
