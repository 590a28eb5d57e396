from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.lowering import weight_codes  # noqa: E402
from qcompiler.plan import QuantSpec, Role, TensorPlan  # noqa: E402
from qcompiler.quant.levels import even_levels, uniform_levels  # noqa: E402
from qcompiler.training.weights import FlexRound, SoftBit, StraightThrough, planned_weight, start_of  # noqa: E402

FITTED = np.asarray([-127, -40, -7, 0, 9, 31, 80, 127], np.int8)
TABLES = {"uniform": uniform_levels(3), "even": even_levels(2), "fitted": FITTED, "one bit": uniform_levels(1)}


def planned(levels, codes=None):
    """Return a plan for a convolution's weight and the weight, whose scales cover half of its range."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    scale = (np.abs(weight).reshape(4, -1).max(1) / np.abs(levels.astype(int)).max() / 2).astype(np.float32)
    spec = QuantSpec(num_bits=3, signed=True, symmetric=True, axis=0)
    zero = np.zeros(4, np.int32)
    entry = TensorPlan(name="w", role=Role.WEIGHT, spec=spec, scale=scale, zero_point=zero, levels=levels, codes=codes)
    return entry, weight


def moved_codes(levels):
    """Return codes one level away from the nearest, as a solver may choose them."""
    entry, weight = planned(levels)
    index = np.searchsorted(levels, weight_codes(weight, entry))
    rng = np.random.default_rng(1)
    return levels[np.clip(index + rng.integers(-1, 2, index.shape), 0, len(levels) - 1)]


@pytest.mark.parametrize("way", [StraightThrough, FlexRound, SoftBit])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("solved", [False, True])
def test_the_start_is_the_planned_codes_and_scales(way, table, solved):
    levels = TABLES[table]
    entry, weight = planned(levels, moved_codes(levels) if solved else None)
    found = planned_weight(way(start_of(entry, torch.tensor(weight))))
    assert np.array_equal(found.codes, weight_codes(weight, entry))
    assert np.array_equal(found.scale, entry.scale)


@pytest.mark.parametrize("way", [StraightThrough, FlexRound, SoftBit])
@pytest.mark.parametrize("table", TABLES)
def test_codes_stay_levels_wherever_training_goes(way, table):
    entry, weight = planned(TABLES[table])
    trained = way(start_of(entry, torch.tensor(weight)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in trained.leaves():
            leaf += 9 * torch.randn(leaf.shape, generator=generator)
    found = planned_weight(trained)
    assert set(np.unique(found.codes)) <= set(TABLES[table].tolist())
    if (way, table) != (FlexRound, "one bit"):  # division keeps the sign
        assert not np.array_equal(found.codes, weight_codes(weight, entry))
    trained.project()
    assert np.array_equal(planned_weight(trained).codes, found.codes)


def test_flexround_moves_large_weights_by_several_levels_and_only_the_grid_size_decodes():
    entry, weight = planned(uniform_levels(4))
    trained = FlexRound(start_of(entry, torch.tensor(weight)))
    before = weight_codes(weight, entry).astype(int)
    with torch.no_grad():
        trained.leaves()[0].fill_(2.0)
    moved = np.abs(planned_weight(trained).codes.astype(int) - before)
    assert moved.max() > 1
    assert moved[np.abs(before) <= 1].max() <= 1
    assert np.array_equal(planned_weight(trained).scale, entry.scale)


def test_flexround_has_a_divisor_for_elements_output_channels_and_input_channels():
    entry, weight = planned(uniform_levels(4))
    shapes = [tuple(leaf.shape) for leaf in FlexRound(start_of(entry, torch.tensor(weight))).leaves()]
    assert sorted(shapes) == sorted([(4, 3, 3, 3), (4, 1, 1, 1), (1, 3, 1, 1), (4, 1, 1, 1)])


def test_gradients_of_flexround_are_those_of_the_paper():
    entry, weight = planned(uniform_levels(4))
    trained = FlexRound(start_of(entry, torch.tensor(weight)))
    (trained.codes() * trained.scale()).sum().backward()
    position = trained.start.position
    levels = trained.start.levels
    inside = (position >= levels[0] - 0.5) & (position <= levels[-1] + 0.5)
    unit = 1 / max(float(position.square().mean().sqrt()), 1.0)
    expected = -trained.start.scale * position * inside * unit
    torch.testing.assert_close(trained.leaves()[0].grad, expected)
    growth = (trained.start.scale * (trained.codes() - position * inside)).sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(trained.growth.grad, growth.detach() / trained.start.reach)


def test_a_soft_bit_lies_between_neighbours_and_is_a_level_after_projection():
    entry, weight = planned(FITTED)
    trained = SoftBit(start_of(entry, torch.tensor(weight)))
    inside = (trained.start.position > -127) & (trained.start.position < 127)
    widest = float(np.diff(FITTED.astype(int)).max())
    assert ((trained.loose() - trained.start.position).abs()[inside] <= 0.05 * widest + 1e-3).all()
    assert trained.penalty(0.0) == 0
    early, late = trained.penalty(0.3).item(), trained.penalty(0.99).item()
    assert early > late > 0
    trained.project()
    assert torch.equal(trained.loose(), trained.codes())
    assert trained.penalty(0.99).item() == pytest.approx(0, abs=1e-6)


def test_the_penalty_pushes_bits_apart():
    entry, weight = planned(FITTED)
    trained = SoftBit(start_of(entry, torch.tensor(weight)))
    before, start = trained.codes(), trained.loose().detach()
    optimizer = torch.optim.SGD([trained.logit], lr=50.0)
    for _ in range(200):
        optimizer.zero_grad()
        trained.penalty(1.0).backward()
        optimizer.step()
    gap = (trained.loose() - trained.codes()).abs().detach()
    assert float(gap.mean()) < 0.1 * float((start - trained.codes()).abs().mean())
    assert torch.equal(trained.codes(), before)


def test_a_weight_without_levels_has_those_of_eight_bits():
    entry, weight = planned(uniform_levels(4))
    wide = replace(entry, levels=None, spec=replace(entry.spec, num_bits=8), scale=entry.scale / 16)
    start = start_of(wide, torch.tensor(weight))
    assert (float(start.levels[0]), float(start.levels[-1])) == (-127, 127)


@pytest.mark.parametrize("way", [StraightThrough, FlexRound])
def test_a_step_moves_as_far_on_a_fitted_table_as_on_a_dense_one(way):
    dense, wide = uniform_levels(3), (uniform_levels(3).astype(int) * 31).astype(np.int8)
    moved, grown = [], []
    for levels in (dense, wide):
        entry, weight = planned(levels)
        trained = way(start_of(entry, torch.tensor(weight)))
        before, scale = trained.loose().detach(), trained.scale().detach()
        with torch.no_grad():
            for leaf in trained.leaves():
                leaf += 0.1
        moved.append(((trained.loose() - before) / trained.start.gap).detach())
        grown.append((trained.scale() / scale).detach())
    torch.testing.assert_close(moved[0], moved[1], rtol=0.05, atol=0.01)
    torch.testing.assert_close(grown[0], grown[1])
    assert float(grown[0].max()) < 1.1
