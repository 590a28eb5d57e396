"""solve-codes: which weights it solves, what it records, and that 8 bits are none of its business."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from qcompiler.errors import UsageError
from qcompiler.layer_problems import gram_matrices, planned_weights
from qcompiler.lowering import weight_codes
from qcompiler.model.edit import clone, constant_of, replace_constant
from qcompiler.plan import Role
from qcompiler.quant.grid import dequantize
from qcompiler.registry import load_target, make_pass
from qcompiler.runtime.capture import Executor
from qcompiler.runtime.grams import GramOptions
from tests.compiling import lowered, planned, run_passes, samples, start
from tests.models import FLOAT, build, conv_net, token_net
from tests.passes.states import narrowed, plan_bytes

ALL = "solve-codes{solvers=nearest+gptq+descent+adaround+flexround}"


def mixed_net():
    """Conv, depthwise Conv, 1x1 Conv, Gemm: ``x`` (1, 3, 8, 8) -> ``y`` (1, 5)."""
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    constants = {
        "w1": drawn(8, 3, 3, 3),
        "b1": drawn(8),
        "w2": drawn(8, 1, 3, 3),
        "w3": drawn(6, 8, 1, 1),
        "w4": drawn(6 * 64, 5),
        "b4": drawn(5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "w3"], ["d"], name="pointwise"),
        helper.make_node("Flatten", ["d"], ["e"], name="flatten"),
        helper.make_node("Gemm", ["e", "w4", "b4"], ["y"], name="last"),
    ]
    return build(nodes, [("x", FLOAT, [1, 3, 8, 8])], [("y", FLOAT, [1, 5])], constants)


def prepared(proto, bits=4, count=8, only=""):
    """Return a state with scaled weights, all of them (or the one named) narrowed to so many bits."""
    state, where = planned(proto, passes=("fold-batch-norm", "place"), data=samples(start(proto).model, count))
    return run_passes(narrowed(state, bits, only), where, "observe", "scale-weights"), where


def solved(proto, spec="solve-codes", **options):
    state, where = prepared(proto, **options)
    result = make_pass(spec).run(state, where)
    return state, result.state, result.report


def output_error(state, plan, name):
    """Return the mean square of what rounding one layer's weight does to its output, less its mean."""
    node = next(n for n in state.model.graph if n.name == name)
    entry = plan.tensors[node.inputs[1].name]
    where = samples(state.model, 6, seed=9)
    other = clone(state.model)
    value = next(n for n in other.graph if n.name == name).inputs[1]
    weight = constant_of(value)
    rounded = dequantize(weight_codes(weight, entry), entry.scale, entry.zero_point, entry.spec.axis)
    replace_constant(value, rounded)
    output = node.outputs[0].name
    first, second = Executor(state.model, [output]), Executor(other, [output])
    shift = np.concatenate(
        [second.run(where[i])[output].astype(np.float64) - first.run(where[i])[output] for i in range(6)]
    )
    return float(np.square(shift - shift.mean(axis=(0, *range(2, shift.ndim)), keepdims=True)).mean())


def test_every_layer_gets_codes_on_levels_that_lower_its_error():
    before, after, report = solved(mixed_net(), ALL, bits=3)
    assert {m.name: m.value for m in report.metrics}["solved"] == 4
    for name in ("first", "depthwise", "pointwise", "last"):
        node = next(n for n in before.model.graph if n.name == name)
        entry = after.plan.tensors[node.inputs[1].name]
        assert entry.spec.num_bits == 3
        assert entry.codes.shape == tuple(node.inputs[1].shape)
        assert entry.codes.dtype == np.int8
        assert len(entry.levels) <= 8
        assert np.isin(entry.codes, entry.levels).all()
        assert entry.scale.dtype == np.float32
        assert (entry.scale > 0).all()
        assert entry.zero_point.tolist() == [0] * entry.scale.size
        assert entry.decided_by[-1] == "solve-codes"
        assert "levels" in entry.reason
        assert output_error(before, after.plan, name) < output_error(before, before.plan, name)


def test_the_recorded_weight_error_is_that_of_the_weights():
    before, after, _ = solved(mixed_net())
    entry = after.plan.tensors["w4"]
    weight = before.model.graph.initializers["w4"].const_value.numpy().astype(np.float64)
    error = entry.codes * entry.scale.astype(np.float64) - weight
    assert entry.error_db == pytest.approx(10 * np.log10((weight**2).sum() / (error**2).sum()), abs=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 5, 7])
def test_every_width(bits):
    _, after, _ = solved(mixed_net(), bits=bits)
    for entry in after.plan.tensors.values():
        if entry.role is Role.WEIGHT:
            assert len(np.unique(entry.codes)) <= len(entry.levels) <= 2**bits


def test_without_narrow_weights_the_plan_is_the_same_object(monkeypatch):
    monkeypatch.setattr("qcompiler.passes.solve_codes.gram_matrices", None)
    state, where = prepared(mixed_net(), bits=8)
    result = make_pass("solve-codes").run(state, where)
    assert result.state is state
    assert not result.report.changed
    assert result.report.metrics[0].value == 0


def test_only_the_weights_below_eight_bits_change():
    before, after, report = solved(mixed_net(), bits=4, only="w3")
    changed = {k for k, t in after.plan.tensors.items() if t is not before.plan.tensors[k]}
    assert changed == {"w3"}
    assert [row.name for row in report.tables[0].rows] == ["w3"]


def test_max_bits_leaves_wider_weights_alone():
    before, after, report = solved(mixed_net(), "solve-codes{max_bits=3}", bits=4)
    assert not report.changed
    assert after.plan is before.plan


def test_planned_levels_are_kept_for_a_runtime_that_reads_codes_as_numbers():
    state, where = prepared(mixed_net(), bits=2)
    where = replace(where, target=load_target("qnn"))
    levels = np.asarray([-9, -1, 2, 11], np.int8)
    state = replace(state, plan=state.plan.with_tensors(replace(state.plan.tensors["w1"], levels=levels)))
    entry = make_pass("solve-codes").run(state, where).state.plan.tensors["w1"]
    np.testing.assert_array_equal(entry.levels, levels)
    assert np.isin(entry.codes, levels).all()


def test_the_table_names_the_winner_and_every_solver():
    _, after, report = solved(mixed_net(), ALL)
    table = report.tables[0]
    assert table.columns == ("nearest", "gptq", "descent", "adaround", "flexround", "best rows")
    for row in table.rows:
        winner, _, levels = row.note.partition(", ")
        assert row.values[table.columns.index(winner)] == max(row.values)
        reason = after.plan.tensors[row.name].reason
        assert reason.startswith(f"{winner} on {levels} levels: output at {max(row.values):.1f} dB")
    wins = sum(m.value for m in report.metrics if m.name.startswith("won by"))
    assert wins == len(table.rows)


def test_more_effort_takes_more_solvers():
    state, where = prepared(mixed_net())
    where = replace(where, recipe=replace(where.recipe, effort=2))
    assert make_pass("solve-codes").run(state, where).report.options["solvers"].endswith("adaround+flexround")


def test_without_samples_weights_are_rounded_by_their_own_error():
    state, where = prepared(mixed_net())
    result = make_pass("solve-codes").run(state, replace(where, calibration=None))
    assert len(result.report.skipped) == 4
    assert all("there are no samples" in s.reason for s in result.report.skipped)
    entry = result.state.plan.tensors["w1"]
    assert np.isin(entry.codes, entry.levels).all()


def test_a_layer_too_large_for_a_solver_says_so():
    _, after, _ = solved(mixed_net(), "solve-codes{solvers=nearest+descent,limit=100000}")
    assert "descent: the layer is too large for it" in after.plan.tensors["w4"].reason
    assert "too large" not in after.plan.tensors["w3"].reason


def test_other_operators_are_rounded_with_a_reason():
    proto = token_net()
    state, where = prepared(proto, count=4)
    narrow = planned_weights(state, range(1, 8))
    refused = {w.entry.name for w in narrow if w.refusal}
    assert refused
    result = make_pass("solve-codes").run(state, where)
    assert {s.tensor for s in result.report.skipped} == refused
    for weight in narrow:
        entry = result.state.plan.tensors[weight.entry.name]
        assert np.isin(entry.codes, entry.levels).all()
        assert entry.codes.shape == weight.array.shape


def test_rows_and_codes_are_inverse():
    for proto in (mixed_net(), token_net(), conv_net(channels=16)):
        state, _ = prepared(proto, count=2)
        for weight in planned_weights(state, range(1, 8)):
            numbers = np.arange(weight.array.size).reshape(weight.array.shape) % 120
            numbered = replace(weight, array=numbers.astype(np.float32))
            np.testing.assert_array_equal(numbered.shaped(numbered.rows().astype(np.int8)), numbers)


def test_layers_with_a_bias_that_follows_the_mean_are_centered():
    state, where = prepared(mixed_net())
    weights = planned_weights(state, range(1, 8))
    assert [w.entry.name for w in weights] == ["w1", "w2", "w3", "w4"]
    grams = gram_matrices(state, weights, where.calibration, GramOptions())
    assert grams["w2"].shape == (8, 9, 9)
    columns = np.concatenate([Executor(state.model, ["e"]).run(where.calibration[i])["e"] for i in range(8)])
    covariance = np.cov(columns.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(grams["w4"][0], covariance, rtol=1e-5, atol=1e-5 * np.abs(covariance).max())
    undecided = replace(state, plan=replace(state.plan, nodes={}))
    plain = gram_matrices(undecided, weights, where.calibration, GramOptions())
    second = columns.astype(np.float64).T @ columns / len(columns)
    np.testing.assert_allclose(plain["w4"][0], second, rtol=1e-5, atol=1e-5 * np.abs(second).max())


def test_what_is_lowered_holds_the_codes_and_is_closer_than_nearest():
    state, where = prepared(mixed_net(), bits=3, count=64, only="w1")
    feeds = samples(state.model, 6, seed=9)
    exact = Executor(state.model, ["y"])
    found = {}
    for name, steps in {"nearest": (), "solved": ("solve-codes",)}.items():
        planned_state = run_passes(state, where, *steps, "calibrate{method=minmax}", "correct-bias")
        model = lowered(planned_state, where).model
        runs = Executor(model, ["y"])
        errors = [runs.run(feeds[i])["y"].astype(np.float64) - exact.run(feeds[i])["y"] for i in range(6)]
        found[name] = float(np.square(errors).sum())
    assert found["solved"] < found["nearest"]


@pytest.mark.parametrize(
    "spec", ["solve-codes{solvers=magic}", "solve-codes{tables=odd}", "solve-codes{max_bits=8}", "solve-codes{tables=}"]
)
def test_options_that_mean_nothing_are_refused(spec):
    with pytest.raises(UsageError):
        make_pass(spec)


def test_the_same_plan_every_time_through_bias_correction():
    state, where = prepared(mixed_net())
    first, second = (run_passes(state, where, "solve-codes", "correct-bias") for _ in range(2))
    assert plan_bytes(first.plan) == plan_bytes(second.plan)
    assert "last:bias" in first.plan.tensors
