"""Losses by distillation, and the oracle: what it keeps and stacks changes no answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

pytest.importorskip("torch")

import torch

from qcompiler.errors import DataError, QCompileError
from qcompiler.executor.batching import batch_axes, rows_of
from qcompiler.executor.binding import EMPTY, Binding, FakeQuantize, binding_of
from qcompiler.executor.executor import TorchExecutor
from qcompiler.executor.loss import DistillationLoss
from qcompiler.executor.oracle import Limits, LossOracle
from qcompiler.executor.timing import search_speed, step_seconds
from tests import models
from tests.executor.nets import ROWS, fixed_batch_net, mixing_net, oracle_of, plan_of, rows_for
from tests.models import FLOAT, build

RELATIVE = 1e-4
"""Losses are sums of squares of small differences, each with the rounding of a float32 network."""


def softmax_net():
    proto = models.dense_net()
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["p"], name="softmax"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("p", FLOAT, ["N", 4]))
    return proto


def loss_of(proto, **options):
    state, _ = plan_of(proto)
    executor = TorchExecutor(state.model)
    _, feeds = rows_for(state, executor)
    return DistillationLoss(executor, feeds, batch_axes(executor), **options), executor, feeds, state


def everything(loss):
    return slice(0, loss.rows)


# -- losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [models.dense_net, softmax_net])
def test_class_scores_are_compared_by_divergence_of_their_logits(make):
    loss, executor, feeds, state = loss_of(make())
    assert (loss.outputs, loss.classes) == (("y",), {"y"})
    found = executor.run(feeds, ["y"], binding=binding_of(state, executor))
    exact = torch.softmax(executor.run(feeds, ["y"])["y"].double(), 1)
    wanted = (exact * (exact.log() - torch.log_softmax(found["y"].double(), 1))).sum(1)
    got = loss(found, everything(loss))
    assert got.shape == (1, ROWS)
    assert got[0].detach().numpy() == pytest.approx(wanted.numpy(), rel=1e-2, abs=1e-7)


def test_other_outputs_are_compared_by_their_error_over_their_power():
    loss, executor, feeds, state = loss_of(fixed_batch_net())
    assert (loss.outputs, loss.classes) == (("y",), frozenset())
    found, exact = (executor.run(feeds, binding=b)["y"].detach() for b in (binding_of(state, executor), EMPTY))
    wanted = float((found - exact).square().sum() / exact.square().sum())
    assert float(loss({"y": found}, everything(loss)).detach().mean()) == pytest.approx(wanted, rel=RELATIVE)


def places_net(axis=-1):
    """Return a net that gives the probabilities of four classes at each of three places."""
    weight = np.random.default_rng(2).standard_normal((8, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
        helper.make_node("Softmax", ["y"], ["p"], name="softmax", axis=axis),
    ]
    return build(nodes, [("x", FLOAT, ["N", 3, 8])], [("p", FLOAT, ["N", 3, 4])], {"w": weight})


def test_probabilities_at_several_places_are_compared_place_by_place():
    loss, executor, feeds, _ = loss_of(places_net())
    assert (loss.outputs, loss.classes) == (("y",), {"y"})
    exact = executor.run(feeds, ["y"])["y"].detach()
    found = exact.clone()
    found[:, 1] = exact[:, 1].flip(-1)
    log, other = torch.log_softmax(exact[:, 1], -1), torch.log_softmax(found[:, 1], -1)
    wanted = (log.exp() * (log - other)).sum(-1) / 3
    assert torch.allclose(loss({"y": found}, everything(loss))[0], wanted, atol=1e-5)
    twice = torch.cat([found, exact])
    assert torch.allclose(loss({"y": twice}, everything(loss), copies=2), torch.stack([wanted, wanted * 0]), atol=1e-5)


def test_a_softmax_over_another_axis_gives_no_class_scores():
    assert loss_of(places_net(axis=1))[0].classes == frozenset()


def test_the_float_model_runs_only_for_a_loss_that_is_asked_for(monkeypatch):
    loss, executor, feeds, _ = loss_of(places_net())
    runs = []
    exact = executor.run(feeds, ["y"])
    run = TorchExecutor.run
    monkeypatch.setattr(TorchExecutor, "run", lambda self, *words, **more: runs.append(1) or run(self, *words, **more))
    again = DistillationLoss(executor, feeds, {"x": 0, "y": 0, "p": 0})
    assert again.classes == {"y"}
    assert not runs
    assert float(again(exact, everything(loss)).detach().abs().max()) < 1e-6
    assert runs


def test_probabilities_that_are_reshaped_are_no_logits():
    proto = softmax_net()
    proto.graph.node.append(helper.make_node("Flatten", ["p"], ["flat"], name="flatten"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("flat", FLOAT, ["N", 4]))
    loss, *_ = loss_of(proto)
    assert (loss.outputs, loss.classes) == (("flat",), frozenset())


def test_an_identity_behind_a_softmax_is_looked_through():
    proto = softmax_net()
    proto.graph.node.append(helper.make_node("Identity", ["p"], ["same"], name="same"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("same", FLOAT, ["N", 4]))
    loss, *_ = loss_of(proto)
    assert (loss.outputs, loss.classes) == (("y",), {"y"})


def test_the_float_model_has_no_loss_and_labels_add_theirs():
    loss, executor, feeds, _ = loss_of(models.dense_net())
    exact = executor.run(feeds)
    assert float(loss(exact, everything(loss)).detach().abs().max()) < 1e-6
    labels = torch.arange(ROWS) % 4
    labelled, *_ = loss_of(models.dense_net(), labels=labels, label_weight=0.5)
    wanted = 0.5 * torch.nn.functional.cross_entropy(exact["y"], labels, reduction="none")
    assert torch.allclose(labelled(exact, everything(loss))[0], wanted, atol=1e-5)
    with pytest.raises(DataError, match="3 labels for 6 rows; give one label per row"):
        loss_of(models.dense_net(), labels=torch.zeros(3, dtype=torch.int64))


def test_an_infinity_of_the_float_model_does_not_count():
    node = helper.make_node("Log", ["x"], ["y"], name="log")
    executor = TorchExecutor(plan_of(build([node], [("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 3])]))[0].model)
    feeds = {"x": torch.tensor([[0.0, 1.0, 2.0], [1.0, 3.0, 2.0]])}
    loss = DistillationLoss(executor, feeds, {"x": 0, "y": 0})
    found = {"y": torch.tensor([[7.0, 0.5, 0.0], [0.0, 0.0, 0.0]])}
    assert torch.isfinite(loss(found, slice(0, 2))).all()
    assert torch.equal(
        loss({"y": found["y"] + torch.tensor([[9.0, 0, 0], [0, 0, 0]])}, slice(0, 2)), loss(found, slice(0, 2))
    )


def test_a_model_without_such_outputs_is_refused():
    node = helper.make_node("ArgMax", ["x"], ["y"], name="best")
    net = build([node], [("x", FLOAT, ["N", 3])], [("y", models.TensorProto.INT64, ["N", 3])])
    executor = TorchExecutor(plan_of(net)[0].model)
    with pytest.raises(QCompileError, match="no float output depends on the input"):
        DistillationLoss(executor, {"x": torch.ones(2, 3)}, None)


# -- the oracle ----------------------------------------------------------------------------------------


def weight_candidates(oracle: LossOracle, step: int, count: int) -> list[Binding]:
    name = oracle.executor.steps[step].inputs[1]
    base = oracle.binding.parameters
    return [replace(oracle.binding, parameters={**base, name: base[name] * (1 + 0.05 * i)}) for i in range(count)]


def clip_candidates(oracle: LossOracle, value: str, count: int) -> list[Binding]:
    base = oracle.binding.values
    old = base[value]
    assert isinstance(old, FakeQuantize)
    grids = [replace(old, scale=old.scale * (1 - 0.1 * i)) for i in range(count)]
    return [replace(oracle.binding, values={**base, value: g}) for g in grids]


LIMITS = {
    "plain": Limits(),
    "small batches": Limits(batch_rows=4),
    "nothing kept": Limits(batch_rows=4, prefix_bytes=0),
    "some kept": Limits(batch_rows=2, prefix_bytes=20_000),
    "nothing stacked": Limits(stacked_rows=1),
    "little stacked": Limits(stacked_bytes=40_000),
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("make", [models.conv_net, fixed_batch_net])
def test_candidates_have_the_loss_of_a_full_run(make, limits):
    oracle, executor, _ = oracle_of(make(), limits)
    layers = [i for i, s in enumerate(executor.steps) if len(s.inputs) > 1 and s.inputs[1] in oracle.binding.parameters]
    assert len(layers) >= 2
    for step in (*layers, layers[0]):  # forward, and back to the first
        chosen = weight_candidates(oracle, step, 4)
        wanted = [oracle.loss(b) for b in chosen]
        assert oracle.candidates(step, chosen) == pytest.approx(wanted, rel=RELATIVE)
        assert len(set(wanted)) == 4


@pytest.mark.parametrize("value", ["image", "a1", "d6", "p", "s", "f"])
def test_candidates_for_a_grid(value):
    oracle, _, _ = oracle_of(models.conv_net())
    chosen = clip_candidates(oracle, value, 4)
    step = oracle.first_step(chosen[1])
    assert oracle.candidates(step, chosen) == pytest.approx([oracle.loss(b) for b in chosen], rel=RELATIVE)


def test_candidates_for_the_grid_of_an_output():
    node = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Conv", ["c", "w"], ["d"], name="next"),
    ]
    weight = {"w": np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)}
    shape = [1, 8, 4, 4]
    oracle, executor, _ = oracle_of(
        build(node, [("x", FLOAT, shape)], [("c", FLOAT, shape), ("d", FLOAT, shape)], weight)
    )
    chosen = clip_candidates(oracle, "c", 3)
    wanted = [oracle.loss(b) for b in chosen]
    assert oracle.candidates(1, chosen) == pytest.approx(wanted, rel=RELATIVE)
    last = clip_candidates(oracle, "d", 3)
    assert oracle.first_step(last[1]) == len(executor.steps)
    assert oracle.candidates(len(executor.steps), last) == pytest.approx([oracle.loss(b) for b in last], rel=RELATIVE)
    assert len(set(wanted)) == 3


def test_a_search_that_freezes_its_choices():
    oracle, executor, _ = oracle_of(models.conv_net())
    first, second = (next(i for i, s in enumerate(executor.steps) if s.name == n) for n in ("conv1", "pw"))
    chosen = weight_candidates(oracle, first, 2)[1]
    oracle.candidates(first, [chosen])
    oracle.freeze(chosen)
    later = weight_candidates(oracle, second, 3)
    assert oracle.candidates(second, later) == pytest.approx([oracle.loss(b) for b in later], rel=RELATIVE)
    early = weight_candidates(oracle, first, 2)[1]
    with pytest.raises(QCompileError, match=f"a candidate for step {second} changes 'conv1', which comes before it"):
        oracle.candidates(second, [early])
    oracle.freeze(early)  # changes what was passed: the prefix is made again
    later = weight_candidates(oracle, second, 2)
    assert oracle.candidates(second, later) == pytest.approx([oracle.loss(b) for b in later], rel=RELATIVE)
    assert oracle.loss() == pytest.approx(oracle.loss(early))


def test_samples_that_share_no_run_are_run_one_by_one():
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((24, 24)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["y", "w"], ["z"], name="product")]
    proto = mixing_net()
    proto = build([*proto.graph.node, *nodes], [("x", FLOAT, ["N", 24])], [("z", FLOAT, ["N", 24])], constants)
    state, _ = plan_of(proto)
    executor = TorchExecutor(state.model)
    assert batch_axes(executor) is None
    _, feeds = rows_for(state, executor)
    oracle = LossOracle(state, executor, feeds, DistillationLoss(executor, feeds, None), None)
    step = len(executor.steps) - 1
    chosen = weight_candidates(oracle, step, 3)
    assert oracle.candidates(step, chosen) == pytest.approx([oracle.loss(b) for b in chosen], rel=RELATIVE, abs=1e-9)


def test_speed_is_measured_against_the_steps_behind():
    oracle, executor, feeds = oracle_of(models.conv_net())
    seconds = step_seconds(executor, rows_of(feeds, slice(0, 2)), oracle.binding, 2)
    assert seconds.shape == (len(executor.steps),)
    assert (seconds >= 0).all()
    step = next(i for i, s in enumerate(executor.steps) if s.name == "pw")
    seconds = np.arange(1.0, len(seconds) + 1)
    speed = search_speed(oracle, step, weight_candidates(oracle, step, 2), seconds, 1)
    assert speed.suffix_share == pytest.approx(seconds[step:].sum() / seconds.sum())
    assert speed.bound_per_s == pytest.approx(1 / max(speed.full_s * speed.suffix_share, 1e-12))
