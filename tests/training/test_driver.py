from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.errors import QCompileError  # noqa: E402
from qcompiler.executor.binding import binding_of  # noqa: E402
from qcompiler.executor.setup import prepare_search  # noqa: E402
from qcompiler.model.blocks import block_outputs  # noqa: E402
from qcompiler.registry import make_pass  # noqa: E402
from qcompiler.training.augment import LONGEST_PART, SMALLEST_PART, _moved, varied  # noqa: E402
from qcompiler.training.compressor import LevelCompressor  # noqa: E402
from qcompiler.training.driver import Schedule, Task, _rate, fine_tune, relative_error  # noqa: E402
from qcompiler.training.measure import held_out_loss  # noqa: E402
from tests.compiling import samples, start  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.training.lowbits import low_bit_state  # noqa: E402


@pytest.fixture(scope="module")
def case():
    proto = conv_net(channels=16)
    state, where = low_bit_state(proto, 2, samples(start(proto).model, count=32))
    setup = prepare_search(state, where)
    assert not isinstance(setup, str), setup
    return state, where, setup


def task(setup, state, **schedule):
    return Task(
        samples=setup.samples,
        outputs=setup.loss.outputs,
        classes=setup.loss.classes,
        base=binding_of(state, setup.executor),
        schedule=Schedule(**{"steps": 40, "batch_rows": 16, **schedule}),
    )


@pytest.mark.parametrize("period", [1, 10])
def test_training_brings_the_model_nearer_on_samples_it_has_not_seen(case, period):
    state, _, setup = case
    base = binding_of(state, setup.executor)
    compressor = LevelCompressor(state, setup.executor)
    record = fine_tune(setup.executor, compressor, period, task(setup, state))
    assert record.steps == 40
    assert record.features > 0
    assert record.options["seed"] == 0
    assert held_out_loss(setup, compressor.compressed(base)) < 0.7 * held_out_loss(setup, base)


def test_it_is_the_same_every_time_and_another_with_another_seed(case):
    state, _, setup = case

    def trained(seed):
        compressor = LevelCompressor(state, setup.executor)
        fine_tune(setup.executor, compressor, 1, task(setup, state, steps=5, seed=seed))
        return [leaf.detach().numpy().copy() for leaf in compressor.leaves()]

    first, again, other = trained(0), trained(0), trained(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_weight_of_inner_values_brings_them_nearer(case):
    state, _, setup = case
    base = binding_of(state, setup.executor)
    inner = block_outputs(setup.executor.model)[1]
    (wanted,) = setup.executor.run(setup.held_out, [inner]).values()
    reached = {}
    for weight in (0.0, 100.0):
        compressor = LevelCompressor(state, setup.executor)
        fine_tune(setup.executor, compressor, 1, task(setup, state, feature_weight=weight))
        binding = compressor.compressed(base)
        (found,) = setup.executor.run(setup.held_out, [inner], binding=binding).values()
        reached[weight] = float(relative_error(found, wanted).detach())
    assert reached[100.0] < reached[0.0]


def test_it_ends_when_it_is_told_to(case):
    state, _, setup = case
    asked = iter([False, False, True])
    told = replace(task(setup, state), finished=lambda: next(asked))
    assert fine_tune(setup.executor, LevelCompressor(state, setup.executor), 1, told).steps == 2


def test_the_learning_rate_falls_with_the_time_where_that_is_ahead(case):
    state, _, setup = case
    ends = []
    for over in (0.0, 1.0):
        compressor = LevelCompressor(state, setup.executor)
        before = [leaf.detach().clone() for leaf in compressor.leaves()]
        given = replace(task(setup, state, steps=4), gone=lambda over=over: over)
        fine_tune(setup.executor, compressor, 1, given)
        ends.append(sum(float((a.detach() - b).abs().sum()) for a, b in zip(compressor.leaves(), before, strict=True)))
    assert ends[0] > 0.0
    assert ends[1] == 0.0


def test_a_period_below_one_is_refused(case):
    state, _, setup = case
    with pytest.raises(QCompileError, match="period"):
        fine_tune(setup.executor, LevelCompressor(state, setup.executor), 0, task(setup, state))


def test_the_pass_keeps_what_is_better_and_signs_it(case):
    state, where, _ = case
    found = make_pass("fine-tune{steps=20}").run(state, where)
    assert found.report.changed
    assert found.report.options["batch rows"] == 16
    trained = [t for t in found.state.plan.tensors.values() if t.decided_by[-1:] == ("fine-tune",)]
    assert {str(t.role) for t in trained} == {"weight", "bias"}


def test_the_pass_leaves_alone_what_it_makes_worse(case):
    state, where, _ = case
    found = make_pass("fine-tune{steps=3,rate=1000.0}").run(state, where)
    assert not found.report.changed
    assert found.state is state
    assert "did not help" in found.report.notes[0]


def test_without_samples_the_pass_says_what_it_needs(case):
    state, where, _ = case
    found = make_pass("fine-tune").run(state, replace(where, calibration=None))
    assert found.state is state
    assert "--data" in found.report.notes[0]


@pytest.mark.parametrize(("steps", "gone", "share"), [(4000, 0.0, 1), (500, 0.0, 0.5), (10**9, 0.01, 0.2)])
def test_the_rate_is_lower_where_few_mini_batches_fit(steps, gone, share):
    plan = Schedule(steps=steps, learning_rate=0.1, full_rate_steps=1000)
    step = 2 if gone else 0  # two in a hundredth of the time: 200 fit
    expected = 0.1 * share * (1 + np.cos(np.pi * gone)) / 2
    assert _rate(plan, step, gone) == pytest.approx(expected)
    assert _rate(replace(plan, full_rate_steps=0), step, gone) == pytest.approx(expected / share)


def test_photographs_are_moved_and_mixed_and_everything_else_is_only_mixed():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(32.0).expand(8, 3, 32, 32).clone()
    ((_, images),) = varied({"x": ramp}, generator).items()
    assert images.shape == ramp.shape
    assert images.min() >= 0
    assert images.max() <= 31
    assert not torch.equal(images, ramp)
    rows = torch.eye(16)
    ((_, mixed),) = varied({"x": rows}, generator).items()
    torch.testing.assert_close(mixed.sum(1), torch.ones(16))
    assert not torch.equal(mixed, rows)


@pytest.mark.parametrize(("side", "least"), [(96, SMALLEST_PART), (32, (28 / 32) ** 2), (16, SMALLEST_PART)])
def test_a_part_of_a_photograph_is_shown_as_large_as_the_whole(side, least):
    shape = (64, 3, side, side)
    pattern = torch.rand(1, *shape[1:], generator=torch.Generator().manual_seed(1)).expand(shape)
    shown = _moved(pattern, torch.Generator().manual_seed(0))
    ramp = torch.arange(float(side)).expand(shape)
    slopes = _moved(ramp, torch.Generator().manual_seed(0)).diff(dim=-1).median(-1)
    steps = slopes.values[:, 0, 0]
    assert shown.shape == pattern.shape
    assert (steps < 0).any()
    assert (steps > 0).any()
    assert steps.abs().max() <= 1.0 + 1e-5
    assert steps.abs().min() >= (least / LONGEST_PART) ** 0.5 - 1e-5


def test_what_cannot_be_mixed_stays():
    generator = torch.Generator().manual_seed(0)
    tokens = {"ids": torch.arange(6).reshape(2, 3)}
    assert torch.equal(varied(tokens, generator)["ids"], tokens["ids"])
    two = {"a": torch.eye(3), "b": torch.eye(3)}
    assert varied(two, generator) is two
