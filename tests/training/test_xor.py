"""Stored bits that are trained through an XOR network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.codec.xor_weights import INPUTS, XorRate  # noqa: E402
from qcompiler.errors import QCompileError  # noqa: E402
from qcompiler.executor.binding import binding_of  # noqa: E402
from qcompiler.executor.executor import TorchExecutor  # noqa: E402
from qcompiler.lowering import weight_codes  # noqa: E402
from qcompiler.plan import Role  # noqa: E402
from qcompiler.registry import make_pass  # noqa: E402
from qcompiler.training.compressor import LevelCompressor  # noqa: E402
from qcompiler.training.driver import Schedule, Task, fine_tune  # noqa: E402
from qcompiler.training.weights import start_of  # noqa: E402
from qcompiler.training.xor import SHARPNESS, XorBits  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.training.lowbits import low_bit_state  # noqa: E402

RATES = (12, 15, 20, 40)


def coded_state(bits: float = 0.8):
    state, where = low_bit_state(conv_net(channels=16), 1)
    return replace(make_pass("flexor"), bits=bits).run(state, where).state, where


def trained(outputs: int, *, solved: bool = False):
    state, _ = coded_state(INPUTS / outputs) if solved else low_bit_state(conv_net(channels=16), 1)
    executor = TorchExecutor(state.model)
    entry = max((t for t in state.plan.tensors.values() if t.role is Role.WEIGHT), key=lambda t: t.name)
    return XorBits(start_of(entry, executor.parameters[entry.name]), XorRate(outputs)), entry


@pytest.mark.parametrize("outputs", RATES)
def test_codes_are_what_the_codec_decodes(outputs):
    weight, entry = trained(outputs)
    with torch.no_grad():
        weight.stored.copy_(torch.randn(weight.stored.shape, generator=torch.Generator().manual_seed(1)))
    stored = (weight.stored.detach().numpy() >= 0).astype(np.uint8)
    codes = weight.codes().detach().numpy()
    expected = entry.levels[XorRate(outputs).bits_of(stored, codes.size)].reshape(codes.shape)
    assert np.array_equal(codes, expected)


@pytest.mark.parametrize("outputs", RATES)
def test_gradients_are_products_of_the_other_signs(outputs):
    """The formula of the paper, term by term: S (1 - tanh(S x)^2) times the signs of the other bits of the sum."""
    weight, _ = trained(outputs)
    with torch.no_grad():
        weight.stored.copy_(0.3 * torch.randn(weight.stored.shape, generator=torch.Generator().manual_seed(2)))
    codes = weight.codes()
    grad = torch.randn(codes.shape, generator=torch.Generator().manual_seed(3))
    (codes * grad).sum().backward()
    rate = XorRate(outputs)
    x = weight.stored.detach().double().numpy()
    signs, half = np.where(x < 0, -1.0, 1.0), float(weight.start.levels[1] - weight.start.levels[0]) / 2
    flat = np.zeros(len(x) * outputs)
    flat[: grad.numel()] = half * grad.double().numpy().reshape(-1)
    by_slice = flat.reshape(len(x), outputs)
    expected = np.zeros_like(x)
    for row, connected in enumerate(rate.matrix):
        taps = np.flatnonzero(connected)
        for tap in taps:
            others = signs[:, [t for t in taps if t != tap]].prod(1)
            expected[:, tap] += by_slice[:, row] * (-1) ** (len(taps) - 1) * others
    expected *= SHARPNESS * (1 - np.tanh(SHARPNESS * x) ** 2)
    assert np.allclose(weight.stored.grad.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_sign_of_0_is_positive():
    weight, entry = trained(12)
    with torch.no_grad():
        weight.stored.zero_()
    assert bool((weight.codes() == float(entry.levels[1])).all())


@pytest.mark.parametrize("outputs", [12, 15, 20])
def test_planned_words_are_the_start(outputs):
    weight, entry = trained(outputs, solved=True)
    assert np.array_equal(weight.codes().detach().numpy(), entry.codes)


def test_a_bit_starts_as_far_from_0_as_turning_it_costs():
    """With a network that sums nothing, that is the distance of the weight from the middle, in gaps of levels."""
    weight, _ = trained(12)
    low, high = weight.start.levels
    middle, gap = (low + high) / 2, high - low
    expected = ((weight.start.position - middle) / gap).reshape(-1)
    found = weight.stored.detach().reshape(-1)[: expected.numel()]
    clear = expected.abs() > 0.05
    assert torch.allclose(found[clear], expected[clear], atol=1e-4)
    assert float(found.abs().min()) > 0


def test_other_than_two_levels_are_refused():
    state, _ = low_bit_state(conv_net(channels=16), 2)
    executor = TorchExecutor(state.model)
    entry = next(t for t in state.plan.tensors.values() if t.role is Role.WEIGHT)
    with pytest.raises(QCompileError, match="4 levels; an XOR network makes two"):
        XorBits(start_of(entry, executor.parameters[entry.name]), XorRate(15))


def test_the_driver_trains_stored_bits_and_the_plan_keeps_words():
    state, where = coded_state()
    executor = TorchExecutor(state.model)
    compressor = LevelCompressor(state, executor)
    base = binding_of(state, executor)
    for name, tensor in compressor.compressed(base).parameters.items():
        torch.testing.assert_close(tensor.detach(), base.parameters[name], rtol=1e-6, atol=0)
    rows = [where.calibration[i] for i in range(len(where.calibration))]
    feeds = {k: torch.cat([torch.from_numpy(r[k]) for r in rows]) for k in rows[0]}
    task = Task(
        samples=feeds,
        outputs=executor.outputs,
        base=base,
        schedule=Schedule(steps=60, batch_rows=4, learning_rate=0.02, augment=False),
    )
    record = fine_tune(executor, compressor, 1, task)
    assert record.losses[-1] < 0.8 * record.losses[0]
    found = compressor.planned(state.plan)
    rate = XorRate.of_bits(0.8)
    moved = 0
    for name, entry in found.tensors.items():
        if entry.role is Role.WEIGHT and entry.encoding:
            before = weight_codes(executor.parameters[name].numpy(), state.plan.tensors[name])
            moved += int((entry.codes != before).sum())
            assert rate.stored_bits((entry.codes == entry.levels[1]).reshape(-1).astype(np.uint8)) is not None
    assert moved > 0
