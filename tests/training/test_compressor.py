from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.executor.binding import binding_of  # noqa: E402
from qcompiler.executor.executor import TorchExecutor  # noqa: E402
from qcompiler.lowering import weight_codes  # noqa: E402
from qcompiler.plan import Role  # noqa: E402
from qcompiler.training.compressor import LevelCompressor  # noqa: E402
from tests.models import conv_net, dense_net  # noqa: E402
from tests.training.lowbits import low_bit_state  # noqa: E402


@pytest.fixture(params=[1, 2, 4])
def case(request):
    state, _ = low_bit_state(conv_net(channels=16), request.param)
    executor = TorchExecutor(state.model)
    return state, executor, LevelCompressor(state, executor)


def test_it_starts_at_the_planned_codes(case):
    state, executor, compressor = case
    base = binding_of(state, executor)
    for name, tensor in compressor.compressed(base).parameters.items():
        torch.testing.assert_close(tensor.detach(), base.parameters[name], rtol=1e-6, atol=0)


def test_codes_of_a_solver_are_the_start_and_the_float_weight_is_as_near_as_they_allow(case):
    state, executor, _ = case
    name, entry = next((k, t) for k, t in state.plan.tensors.items() if t.role is Role.WEIGHT)
    levels = entry.levels
    codes = np.roll(weight_codes(executor.parameters[name].numpy(), entry), 1)
    moved = state.plan.with_tensors(type(entry)(**{**_fields(entry), "codes": codes}))
    compressor = LevelCompressor(_with_plan(state, moved), executor)
    found = compressor.planned(moved).tensors[name]
    assert np.array_equal(found.codes, codes)
    loose = compressor.loose(binding_of(state, executor)).parameters[name].detach().numpy()
    scale = entry.scale.reshape(-1, *[1] * (codes.ndim - 1))
    planned = codes * scale
    float_weight = executor.parameters[name].numpy()
    inside = (float_weight / scale > levels[0]) & (float_weight / scale < levels[-1])
    assert (np.abs(loose - float_weight)[inside] <= np.abs(planned - float_weight)[inside] + 1e-6).all()


def test_projection_makes_the_loose_weights_the_compressed_ones(case):
    state, executor, compressor = case
    base = binding_of(state, executor)
    with torch.no_grad():
        for leaf in compressor.leaves():
            leaf += 0.4
    compressed = compressor.compressed(base)
    compressor.project()
    loose = compressor.loose(base)
    for name in compressed.parameters:
        assert torch.equal(loose.parameters[name], compressed.parameters[name])


def test_the_plan_holds_what_the_compressed_model_computes_with(case):
    state, executor, compressor = case
    with torch.no_grad():
        for number, leaf in enumerate(compressor.leaves()):
            leaf += 0.1 * (number % 3)
    wanted = compressor.compressed(binding_of(state, executor))
    after = _with_plan(state, compressor.planned(state.plan))
    found = binding_of(after, executor)
    for name, tensor in wanted.parameters.items():
        torch.testing.assert_close(found.parameters[name], tensor.detach(), rtol=1e-6, atol=0)
        assert set(np.unique(after.plan.tensors[name].codes)) <= set(after.plan.tensors[name].levels)
    assert wanted.biases
    for node, bias in wanted.biases.items():
        torch.testing.assert_close(found.biases[node], bias.detach(), rtol=1e-6, atol=1e-7)


def test_gradients_pass_inside_the_levels_and_stop_outside():
    state, _ = low_bit_state(dense_net(), 2)
    executor = TorchExecutor(state.model)
    compressor = LevelCompressor(state, executor)
    position = compressor.leaves()[0]
    with torch.no_grad():
        position.reshape(-1)[0] = 50.0
        position.reshape(-1)[1] = 0.3
    name = next(iter(binding_of(state, executor).parameters))
    compressor.compressed(binding_of(state, executor)).parameters[name].sum().backward()
    assert position.grad.reshape(-1)[0] == 0
    assert position.grad.reshape(-1)[1] > 0


def _fields(entry):
    return {name: getattr(entry, name) for name in type(entry).__slots__}


def _with_plan(state, plan):
    from dataclasses import replace

    return replace(state, plan=plan)


def test_with_fixed_codes_only_scales_and_biases_are_trained(case):
    state, executor = case[0], case[1]
    compressor = LevelCompressor(state, executor)
    every = list(compressor.leaves())
    before = [t.codes for t in compressor.planned(state.plan).tensors.values() if t.role is Role.WEIGHT]
    compressor.fixed_codes = True
    few = list(compressor.leaves())
    assert sum(x.numel() for x in few) < sum(x.numel() for x in every) / 4
    with torch.no_grad():
        for leaf in few:
            leaf += 0.3
    found = compressor.planned(state.plan)
    after = [t.codes for t in found.tensors.values() if t.role is Role.WEIGHT]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(
        not np.array_equal(t.scale, state.plan.tensors[t.name].scale)
        for t in found.tensors.values()
        if t.role is Role.WEIGHT
    )


def test_pruned_weights_move_and_their_zeros_stay():
    state, _ = low_bit_state(conv_net(channels=16), 4)
    executor = TorchExecutor(state.model)
    name, entry = next((k, t) for k, t in state.plan.tensors.items() if k == "pw.w")
    codes = np.random.default_rng(0).integers(-127, 128, executor.parameters[name].shape).astype(np.int8)
    codes *= np.random.default_rng(1).random(codes.shape) < 0.5
    spec = type(entry.spec)(num_bits=8, signed=True, symmetric=True, axis=0)
    share = float((codes == 0).mean())
    sparse = type(entry)(**{**_fields(entry), "codes": codes, "spec": spec, "levels": None, "sparsity": share})
    state = _with_plan(state, state.plan.with_tensors(sparse))
    compressor = LevelCompressor(state, executor)
    base = binding_of(state, executor)
    assert np.array_equal(compressor.planned(state.plan).tensors[name].codes, codes), "the plan is the start"
    for _ in range(5):
        for leaf in compressor.leaves():
            leaf.grad = None
        compressor.compressed(base).parameters[name].sum().backward()
        with torch.no_grad():
            for leaf in compressor.leaves():
                leaf += 0.1 if leaf.grad is None else 0.1 * leaf.grad.sign()
        for binding in (compressor.compressed(base), compressor.loose(base)):
            assert not binding.parameters[name].detach().numpy()[codes == 0].any()
    compressor.project()
    found = compressor.planned(state.plan).tensors[name]
    assert not found.codes[codes == 0].any()
    assert (found.codes != codes)[codes != 0].mean() > 0.5, "5 steps of a tenth of a unit are several levels"
    assert found.sparsity == float((found.codes == 0).mean()) >= share
