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
from tests.attention_nets import packed, separate
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
    assert make_pass("solve-codes").run(state, where).report.options["solvers"].endswith("adaround+flexround+boa+aespa")


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


# -- attention -----------------------------------------------------------------------------------------


def attention_errors(state, plan, proto, seed=9):
    """Return how far the attention's output moves by each of its rounded projections, by weight."""
    found = {}
    for name, entry in plan.tensors.items():
        if entry.role is not Role.WEIGHT or entry.codes is None:
            continue
        other = clone(state.model)
        value = other.graph.initializers[name]
        rounded = dequantize(weight_codes(constant_of(value), entry), entry.scale, entry.zero_point, entry.spec.axis)
        replace_constant(value, rounded)
        runs = Executor(state.model, ["y"]), Executor(other, ["y"])
        where = samples(state.model, 6, seed=seed, free=7)
        outputs = [[np.asarray(r.run(where[i])["y"], np.float64) for i in range(6)] for r in runs]
        found[name] = sum(float(np.square(a - b).sum()) for a, b in zip(*outputs, strict=True))
    return found


def solved_attention(proto, spec, bits=2, count=24):
    state, where = planned(proto, passes=("place",), data=samples(start(proto).model, count, free=7))
    state = run_passes(narrowed(state, bits, ""), where, "observe", "scale-weights")
    result = make_pass(spec).run(state, where)
    return state, result.state, result.report


def wide_attention(**options):
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("WIDTH", 64), ("HEADS", 4), ("SIZE", 16)):
            patch.setattr(f"tests.attention_nets.{name}", size)
        return separate(**options)


def test_queries_keys_and_values_are_solved_by_head_and_the_blocks_are_counted():
    proto, _ = wide_attention()
    _, after, report = solved_attention(proto, "solve-codes{solvers=nearest+gptq+boa+aespa,tables=uniform}")
    metrics = {m.name: m.value for m in report.metrics}
    assert (metrics["attention"], metrics["attention matched"]) == (1, 1)
    layers, attention = report.tables
    values = {row.name: dict(zip(layers.columns, row.values, strict=True)) for row in layers.rows}
    assert values["output.weight"]["boa"] is values["output.weight"]["aespa"] is None
    for role in ("query", "key", "value"):
        found = values[f"{role}.weight"]
        assert found["aespa"] > max(found["gptq"], found["nearest"])
    (row,) = attention.rows
    assert (row.name, row.values) == ("softmax", (4.0, 16.0))
    assert row.note == "self, Softmax; by head: query, key, value"
    assert after.plan.tensors["query.weight"].reason.startswith(("aespa", "best rows"))
    assert "attention at" in after.plan.tensors["query.weight"].reason


def test_what_attention_makes_of_the_errors_shrinks():
    proto, _ = wide_attention()
    lost = {}
    for solvers in ("gptq", "gptq+aespa"):
        before, after, _ = solved_attention(proto, f"solve-codes{{solvers={solvers},tables=uniform}}")
        lost[solvers] = attention_errors(before, after.plan, proto)
    for name in ("query.weight", "key.weight", "value.weight"):
        assert lost["gptq+aespa"][name] < lost["gptq"][name], name
    assert lost["gptq+aespa"]["output.weight"] == lost["gptq"]["output.weight"]


def test_packed_projections_are_solved_part_by_part():
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("WIDTH", 64), ("HEADS", 4), ("SIZE", 16)):
            patch.setattr(f"tests.attention_nets.{name}", size)
        proto, _ = packed("interleaved")
    before, after, report = solved_attention(proto, "solve-codes{solvers=gptq+boa+aespa,tables=uniform}")
    assert report.tables[1].rows[0].note == "self, Softmax; by head: query, key, value"
    plain = solved_attention(proto, "solve-codes{solvers=gptq,tables=uniform}")[1]
    name = "packed.weight"
    assert attention_errors(before, after.plan, proto)[name] < attention_errors(before, plain.plan, proto)[name]


def test_boa_alone_falls_back_to_gptq_without_attention():
    one, other = (solved(mixed_net(), f"solve-codes{{solvers={s},tables=uniform}}")[1].plan for s in ("boa", "gptq"))
    for name, entry in one.tensors.items():
        if entry.role is Role.WEIGHT:
            np.testing.assert_array_equal(entry.codes, other.tensors[name].codes)


def test_half_a_pattern_is_solved_as_far_as_it_goes_and_named():
    proto, _ = wide_attention()
    bent = helper.make_node("Tanh", ["query_out"], ["bent"], name="bent")
    place = next(i for i, n in enumerate(proto.graph.node) if n.name == "query_out") + 1
    for node in proto.graph.node:
        node.input[:] = ["bent" if v == "query_out" else v for v in node.input]
    proto.graph.node.insert(place, bent)
    _, _, report = solved_attention(proto, "solve-codes{solvers=gptq+boa,tables=uniform}")
    reason = "query: Tanh 'bent' lies between the projection and the attention"
    assert report.notes == (f"attention 'softmax' is solved in part as plain layers: {reason}",)
    assert report.tables[1].rows[0].note == f"self, Softmax; by head: key, value; {reason}"
    assert {m.name: m.value for m in report.metrics}["attention matched"] == 0
    values = {row.name: dict(zip(report.tables[0].columns, row.values, strict=True)) for row in report.tables[0].rows}
    assert values["query.weight"]["boa"] is None
    assert values["key.weight"]["boa"] is not None


def test_without_solvers_of_heads_attention_is_not_looked_for(monkeypatch):
    monkeypatch.setattr("qcompiler.passes.solve_codes.attention_problems", None)
    proto, _ = separate()
    _, _, report = solved_attention(proto, "solve-codes{solvers=nearest+gptq}")
    assert len(report.tables) == 1


def test_attention_is_solved_the_same_every_time():
    proto, _ = wide_attention()
    one, other = (solved_attention(proto, "solve-codes{solvers=gptq+boa+aespa}")[1].plan for _ in range(2))
    assert plan_bytes(one) == plan_bytes(other)
