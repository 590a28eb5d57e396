"""The simulation of a planned state, against ONNX Runtime on the graph that the lowering passes write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

pytest.importorskip("torch")

import torch

from benchmarks.models import CNN_MODELS
from qcompiler.executor.binding import FakeQuantize, binding_of, fake_quantize_rows
from qcompiler.executor.executor import TorchExecutor
from qcompiler.model.load import load_model
from qcompiler.plan import CompressionPlan, Precision, Role
from qcompiler.recipe import MatchRule
from qcompiler.state import State
from tests import models
from tests.compiling import PLANNING, Fixed, context, lowered, outputs, planned, run_passes, samples
from tests.executor.nets import PLAN, fixed_batch_net, plan_of
from tests.models import FLOAT, build
from tests.tolerances import RUN_TO_RUN_DB, simulation_gap_db


def level(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Return the SQNR in dB."""
    a, b = (np.concatenate([v.reshape(-1) for v in part]).astype(np.float64) for part in (expected, found))
    return float(10 * np.log10(np.sum(a**2) / max(np.sum((a - b) ** 2), 1e-30)))


def levels(state: State, where, data: Fixed) -> tuple[float, float, bool]:
    """Return SQNR of the runtime's integers against float, of the simulation against these, and equal answers."""
    executor, model = TorchExecutor(state.model), lowered(state, where).model
    binding = binding_of(state, executor)
    exact, wanted, found = [], [], []
    for index in range(len(data)):
        feeds = data[index]
        exact += outputs(state.model, feeds)
        wanted += outputs(model, feeds)
        with torch.no_grad():
            made = executor.run({n: torch.tensor(v) for n, v in feeds.items()}, binding=binding)
        found += [made[name].numpy() for name in executor.outputs]
    answers = [(a.argmax(1), b.argmax(1)) for a, b in zip(wanted, found, strict=True) if a.ndim == 2]
    same = all(np.array_equal(a, b) for a, b in answers)
    return level(exact, wanted), level(wanted, found), same


def split_net():
    """An integer Conv whose output is read by an integer Conv, by float nodes and by the graph's output."""
    rng = np.random.default_rng(0)
    constants = {n: (rng.standard_normal((8, 8, 1, 1)) / 3).astype(np.float32) for n in "wvu"}
    nodes = [
        helper.make_node("Sin", ["x"], ["q"], name="wave"),
        helper.make_node("Conv", ["q", "w"], ["c"], name="first"),
        helper.make_node("Cos", ["c"], ["f"], name="float reader"),
        helper.make_node("Conv", ["c", "v"], ["d"], name="second"),
        helper.make_node("Add", ["q", "f"], ["s"], name="sum"),
        helper.make_node("Conv", ["d", "u"], ["e"], name="third"),
        helper.make_node("Mul", ["e", "s"], ["y"], name="product"),
    ]
    outs = [("c", FLOAT, [1, 8, 4, 4]), ("y", FLOAT, [1, 8, 4, 4])]
    return build(nodes, [("x", FLOAT, [1, 8, 4, 4])], outs, constants)


NETS = {
    "conv": models.conv_net,
    "conv, hard swish": lambda: models.conv_net(activation="HardSwish"),
    "dense": models.dense_net,
    "split": split_net,
    "shuffle": fixed_batch_net,
    "tokens": models.token_net,
}
TERMS = 100
"""Products behind one value of the widest layer of these networks."""


@pytest.mark.parametrize("target", ["x86", "arm"])
@pytest.mark.parametrize("name", NETS)
def test_the_simulation_is_what_the_runtime_computes(name, target):
    state, where = plan_of(NETS[name](), target)
    noise, gap, same = levels(state, where, samples(state.model, 4, seed=9, free=1))
    assert noise < 80
    assert same
    assert gap > noise + simulation_gap_db(TERMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "cifar10_resnet20", "ultraface"])
def test_the_simulation_of_real_models(name, shared_data):
    model = next(m for m in CNN_MODELS if m.name == name)
    rows = model.samples(shared_data).calibration
    data = Fixed([{n: v[i : i + 1] for n, v in rows.items()} for i in range(12)])
    state = State(model=load_model(Path(shared_data / model.file)).model, plan=CompressionPlan())
    where = context("x86", Fixed(data.samples[:8]))
    state = run_passes(state, where, *PLAN, check=False)
    scored = Fixed(data.samples[8:])
    noise, gap, same = levels(state, where, scored)
    written = lowered(state, where).model
    fused, plain = ([v for f in scored.samples for v in outputs(written, f, optimize=o)] for o in (True, False))
    assert same
    assert gap > noise
    assert gap > level(fused, plain) - RUN_TO_RUN_DB


def test_who_sees_the_grid():
    state, _ = plan_of(split_net())
    precisions = {n.name: n.precision for n in state.plan.nodes.values()}
    assert precisions["float reader"] is Precision.FLOAT
    binding = binding_of(state, TorchExecutor(state.model))
    assert binding.is_seen_by("c", "float reader")
    assert binding.is_seen_by("c", "")
    assert binding.is_seen_by("q", "first")
    assert not binding.is_seen_by("q", "sum")
    assert set(binding.parameters) == {"w", "v", "u"}


def broken_plan(state: State, broken: str) -> CompressionPlan:
    """Return the plan with one part of it wrong."""
    wrong = state.plan
    for entry in state.plan.tensors.values():
        if broken == "scale" and entry.name == "a1":
            wrong = wrong.with_tensors(replace(entry, scale=entry.scale * np.float32(1.1)))
        if broken == "zero point" and entry.name == "p":
            wrong = wrong.with_tensors(replace(entry, zero_point=entry.zero_point + 64))
        if broken == "weight" and entry.name == "pw.w":
            wrong = wrong.with_tensors(replace(entry, scale=entry.scale * np.float32(1.01)))
        if broken == "bias" and entry.role is Role.BIAS:
            wrong = wrong.without_tensors(frozenset({entry.name}))
    return wrong


@pytest.mark.parametrize("broken", ["scale", "zero point", "weight", "bias", "reader"])
def test_a_wrong_simulation_is_found(broken):
    """Each part of a binding matters: with one of them wrong the error has at least half as much power again."""
    state, where = plan_of(split_net() if broken == "reader" else models.conv_net())
    data = samples(state.model, 3, seed=9)
    executor, model = TorchExecutor(state.model), lowered(state, where).model
    right = binding_of(state, executor)
    wrong = binding_of(replace(state, plan=broken_plan(state, broken)), executor)
    if broken == "reader":
        wrong = replace(wrong, readers={})
    reached = []
    for binding in (right, wrong):
        found, wanted = [], []
        for index in range(len(data)):
            with torch.no_grad():
                made = executor.run({n: torch.tensor(v) for n, v in data[index].items()}, binding=binding)
            found += [made[n].numpy() for n in executor.outputs]
            wanted += outputs(model, data[index])
        reached.append(level(wanted, found))
    assert reached[1] < reached[0] - 10 * np.log10(1.5)


def test_a_weight_that_a_float_node_shares_stays_float_there():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="integer"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="float"),
    ]
    net = build(
        nodes,
        [("x", FLOAT, ["N", 24])],
        [("y", FLOAT, ["N", 24])],
        {"w": rng.standard_normal((24, 24)).astype(np.float32)},
    )
    state, _ = planned(net, passes=PLANNING)
    entry = next(n for n in state.plan.nodes.values() if n.name == "float")
    state = replace(state, plan=state.plan.with_nodes(replace(entry, precision=Precision.FLOAT)))
    executor = TorchExecutor(state.model)
    binding = binding_of(state, executor)
    rows = torch.ones(2, 24)
    found = executor.run({"a": rows}, binding=replace(binding, values={}), start=1)["y"]
    assert torch.equal(found, rows @ executor.parameters["w"])
    assert not torch.equal(binding.parameters["w"], executor.parameters["w"])


def test_rounding_to_a_grid_is_that_of_the_runtime():
    grid = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    net = build(grid, [("x", FLOAT, [None])], [("y", FLOAT, [None])], {"s": np.float32(0.1), "z": np.uint8(7)})
    values = np.concatenate([np.linspace(-3, 40, 9001), np.arange(-20, 300) * 0.1 + 0.05]).astype(np.float32)
    found = FakeQuantize(torch.tensor(np.float32(0.1)), -7.0, 248.0)(torch.tensor(values))
    assert np.array_equal(found.numpy(), models.run(net, {"x": values})[0])


def test_rounding_at_run_time_is_that_of_the_runtime_row_by_row():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    net = build(nodes, [("x", FLOAT, [None, None])], [("y", FLOAT, [None, None])])
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((4, 1000)) * [[1], [0.1], [7], [0]]).astype(np.float32)
    found = fake_quantize_rows(torch.tensor(values)).numpy()
    for row, value in zip(found, values, strict=True):
        assert np.array_equal(row, models.run(net, {"x": value[None]})[0][0])


def test_gradients_pass_straight_through_inside_the_grid():
    x = torch.tensor([-1.0, -0.2, 0.33, 25.0, 30.0], requires_grad=True)
    y = FakeQuantize(torch.tensor(0.1), -7.0, 248.0)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]))
    with torch.no_grad():
        assert torch.equal(FakeQuantize(torch.tensor(0.1), -7.0, 248.0)(x), y)
    rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    fake_quantize_rows(rows).sum().backward()
    assert torch.equal(rows.grad, torch.ones(2, 5))


def test_values_without_a_scale_stay_float():
    state, _ = planned(models.conv_net(batch_norm=False), passes=("place",))
    binding = binding_of(state, TorchExecutor(state.model))
    assert (dict(binding.values), dict(binding.parameters)) == ({}, {})


def test_layers_kept_in_float_are_left_alone():
    rules = (MatchRule(pattern="pw", keep_float=True),)
    state, _ = planned(models.conv_net(batch_norm=False), rules=rules)
    assert "pw.w" not in binding_of(state, TorchExecutor(state.model)).parameters


def test_what_was_decoded_before_is_taken_only_for_the_same_entries():
    state, _ = planned(models.conv_net(channels=8))
    executor, decoded = TorchExecutor(state.model), {}
    first = binding_of(state, executor, decoded)
    name, other = sorted(first.parameters)[:2]
    entry = replace(state.plan.tensors[name], scale=state.plan.tensors[name].scale * np.float32(2))
    changed = replace(state, plan=state.plan.with_tensors(entry))
    second, fresh = binding_of(changed, executor, decoded), binding_of(changed, executor)
    assert second.parameters[other] is first.parameters[other]
    assert fresh.parameters[other] is not first.parameters[other]
    assert not torch.equal(second.parameters[name], first.parameters[name])
    for key, weight in fresh.parameters.items():
        assert torch.equal(second.parameters[key], weight)
