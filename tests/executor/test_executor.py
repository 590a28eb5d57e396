"""The executor: whole models, parts of them, replaced values, gradients, batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import torch

from qcompiler.errors import DataError, ModelError, QCompileError
from qcompiler.executor.batching import batch_axes, stack
from qcompiler.executor.binding import EMPTY, Binding
from qcompiler.executor.determinism import deterministic
from qcompiler.executor.executor import TorchExecutor
from qcompiler.model.load import load_model
from tests import models
from tests.compiling import outputs, samples, start
from tests.executor.nets import fixed_batch_net, mixing_net
from tests.tolerances import folded

NATIVE = (
    *("squeezenet1_1", "mobilenet_v1_025", "cifar10_resnet20", "mlperftiny_resnet8", "mnist_cntk", "kws_dscnn"),
    *("ultraface", "yolox_nano", "fastestdet", "all_minilm_l6_v2"),
)
DEEP = 100_000
"""Products behind one output of the deepest of these models, counted once per layer on the way."""


def executor_of(proto):
    model = start(proto).model
    return TorchExecutor(model), model


def tensors(feeds):
    return {name: torch.tensor(value) for name, value in feeds.items()}


@pytest.mark.parametrize("make", [models.conv_net, models.dense_net, fixed_batch_net, models.token_net])
def test_a_model_computes_what_the_runtime_does(make):
    executor, model = executor_of(make())
    feeds = samples(model, 1, free=3)[0]
    found = executor.run(tensors(feeds))
    for name, expected in zip(executor.outputs, outputs(model, feeds), strict=True):
        assert np.abs(found[name].detach().numpy() - expected).max() <= folded(expected, 500)


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_real_models_are_native(name, shared_data):
    model = load_model(Path(shared_data / "models" / f"{name}.onnx")).model
    executor = TorchExecutor(model)
    assert executor.fallbacks == {}
    feeds = samples(model, 1, free=5)[0]
    with torch.no_grad():
        found = executor.run(tensors(feeds))
    for output, expected in zip(executor.outputs, outputs(model, feeds, optimize=False), strict=True):
        assert np.abs(found[output].numpy() - expected).max() <= folded(expected, DEEP)


def test_what_pytorch_lacks_runs_in_the_runtime_and_ends_the_gradient():
    executor, model = executor_of(models.token_net())
    assert executor.fallbacks == {"LSTM": 1}
    assert [s.native for s in executor.steps if s.op_type == "LSTM"] == [False]
    for tensor in executor.parameters.values():
        tensor.requires_grad_()
    sum(v.sum() for v in executor.run(tensors(samples(model, 1, free=3)[0])).values()).backward()
    reached = {name for name, tensor in executor.parameters.items() if tensor.grad is not None}
    assert "head" in reached
    assert not any(name.startswith("lstm") for name in reached)


def test_steps_and_parameters():
    executor, model = executor_of(models.dense_net())
    assert [s.op_type for s in executor.steps] == ["Gemm", "Relu", "MatMul", "Add"]
    assert set(executor.parameters) == {"w1", "b1", "w2", "b2"}
    assert executor.steps[0].inputs == ("x", "w1", "b1")
    assert executor.readers("r") == (2,)
    assert executor.readers("y") == ()
    assert executor.inputs == ("x",)
    assert executor.outputs == tuple(v.name for v in model.graph.outputs)


def test_a_run_may_be_cut_anywhere():
    executor, model = executor_of(models.conv_net())
    feeds = tensors(samples(model, 1)[0])
    whole = executor.run(feeds)["scores"]
    for step in range(len(executor.steps) + 1):
        live = executor.run(feeds, stop=step)
        assert set(live) == set(executor.live_before(step))
        assert torch.equal(executor.run(live, start=step)["scores"], whole)


def test_only_what_is_asked_for_is_computed():
    executor, model = executor_of(models.dense_net())
    feeds = tensors(samples(model, 1)[0])
    assert set(executor.run(feeds, ["r"])) == {"r"}
    assert executor.live_before(2) == ("r",)
    assert executor.live_before(2, ["h", "y"]) == ("r", "h")
    with pytest.raises(QCompileError, match="value 'r' is needed, and neither fed nor made"):
        executor.run({}, start=2)


def test_a_binding_replaces_parameters_values_inputs_and_biases():
    executor, model = executor_of(models.dense_net())
    feeds = tensors(samples(model, 1)[0])
    parameters = executor.parameters

    def expected(w1, b1, change):
        return change(torch.relu(feeds["x"] @ w1.t() + b1)) @ parameters["w2"] + parameters["b2"]

    doubled, more = parameters["w1"] * 2, torch.ones(32)
    gemm = executor.steps[0].name
    binding = Binding(parameters={"w1": doubled}, biases={gemm: more}, values={"r": lambda v: v * 3})
    wanted = expected(doubled, parameters["b1"] + more, lambda v: v * 3)
    assert torch.allclose(executor.run(feeds, binding=binding)["y"], wanted, rtol=1e-5)
    assert torch.allclose(
        executor.run(feeds, ["r"], binding=binding)["r"] * 1,
        executor.run(feeds, ["r"], binding=replace(binding, values={}))["r"] * 3,
    )
    raw = executor.run(feeds, binding=binding, stop=2)["r"]
    assert torch.allclose(executor.run({"r": raw}, binding=binding, start=2)["y"], wanted, rtol=1e-5)
    step = executor.steps[2].name
    unseen = replace(binding, readers={"r": frozenset()}, inputs={step: {0: lambda v: v * 3}})
    assert torch.allclose(executor.run(feeds, binding=unseen)["y"], wanted, rtol=1e-5)
    blind = replace(binding, readers={"r": frozenset()})
    assert torch.allclose(
        executor.run(feeds, binding=blind)["y"], expected(doubled, parameters["b1"] + more, lambda v: v)
    )


def test_a_bias_where_there_was_none():
    executor, model = executor_of(models.conv_net())
    feeds = tensors(samples(model, 1)[0])
    pointwise = next(s for s in executor.steps if s.name == "pw")
    assert len(pointwise.inputs) == 2
    shift = torch.arange(8.0)
    plain, shifted = (executor.run(feeds, ["p"], binding=b)["p"] for b in (EMPTY, Binding(biases={"pw": shift})))
    assert torch.allclose(shifted - plain, shift.reshape(1, -1, 1, 1).expand_as(plain), atol=1e-5)


def test_gradients_are_those_of_differences():
    executor, model = executor_of(models.conv_net())
    feeds = {n: v.double() for n, v in tensors(samples(model, 1)[0]).items()}
    exact = {n: v.double() for n, v in executor.parameters.items()}
    direction = {
        n: torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(1)) for n, v in exact.items()
    }
    scale = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)

    def loss(at):
        moved = {n: v + at * direction[n] for n, v in exact.items()}
        return executor.run(feeds, binding=Binding(parameters=moved))["scores"].square().sum()

    loss(scale).backward()
    step = 1e-6
    with torch.no_grad():
        slope = (loss(torch.tensor(step)) - loss(torch.tensor(-step))) / (2 * step)
    assert float(scale.grad) == pytest.approx(float(slope), rel=1e-4)


def test_the_same_twice():
    executor, model = executor_of(models.conv_net())
    feeds = tensors(samples(model, 1)[0])
    before = torch.get_num_threads(), torch.random.get_rng_state()
    with deterministic(1):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        first, second = executor.run(feeds)["scores"], executor.run(feeds)["scores"]
    assert torch.equal(first, second)
    assert torch.get_num_threads() == before[0]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_a_batch_in_a_file_that_fixes_it_at_one():
    executor, model = executor_of(fixed_batch_net())
    axes = batch_axes(executor)
    assert axes is not None
    assert (axes["x"], axes["s1"], axes["s3"], axes["y"]) == (0, 0, 1, 0)
    data = samples(model, 3)
    both = executor.run(stack(data.samples, executor))["y"].detach().numpy()
    single = np.concatenate([outputs(model, data[i])[0] for i in range(3)])
    assert both.shape == (3, 64, 2)
    assert np.abs(both - single).max() <= folded(single, 100)


def test_samples_that_do_not_share_a_run():
    assert batch_axes(executor_of(mixing_net())[0]) is None
    node = models.helper.make_node("Squeeze", ["x", "axes"], ["y"], name="squeeze")
    net = models.build([node], [("x", models.FLOAT, [1, 4])], [("y", models.FLOAT, [4])], {"axes": np.array([0])})
    assert batch_axes(executor_of(net)[0]) is None


def test_a_value_that_no_sample_changes_has_no_axis():
    nodes = [
        models.helper.make_node("Transpose", ["w"], ["t"], name="turn"),
        models.helper.make_node("MatMul", ["x", "t"], ["y"], name="product"),
    ]
    net = models.build(
        nodes, [("x", models.FLOAT, ["N", 4])], [("y", models.FLOAT, ["N", 3])], {"w": np.ones((3, 4), np.float32)}
    )
    executor = TorchExecutor(ir.from_proto(net))
    assert batch_axes(executor) == {"x": 0, "t": None, "y": 0}


def test_stacking_refuses_in_one_line():
    executor, _ = executor_of(models.dense_net())
    with pytest.raises(DataError, match="no samples to search with; give more with --data"):
        stack([], executor)
    with pytest.raises(DataError, match="do not fit into one batch"):
        stack([{"x": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 4), np.float32)}], executor)


def test_inputs_that_do_not_fit_are_refused_in_one_line():
    executor, _ = executor_of(models.dense_net())
    with pytest.raises(ModelError, match=r"^Gemm 'fc1' does not run in PyTorch on these inputs: [^\n]*$"):
        executor.run({"x": torch.ones(2, 3)})


def test_text_constants_are_refused_in_one_line():
    node = models.helper.make_node("Identity", ["s"], ["y"], name="same")
    kind = models.TensorProto.STRING
    net = models.build([node], [], [("y", kind, [1])], {"s": np.array([b"a"], dtype=object)})
    with pytest.raises(ModelError, match="constant 's' is of type STRING, which PyTorch lacks"):
        TorchExecutor(ir.from_proto(net))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [models.conv_net, fixed_batch_net, models.token_net])
def test_a_gpu_computes_the_same(make):
    executor, model = executor_of(make())
    there = TorchExecutor(model, device="cuda")
    data = samples(model, 2, free=3)
    found = there.run(stack(data.samples[:1], there))
    for name, value in executor.run(stack(data.samples[:1], executor)).items():
        expected = value.detach().numpy()
        assert found[name].device.type == "cuda"
        assert np.abs(found[name].detach().cpu().numpy() - expected).max() <= folded(expected, 1000)
