"""prune: zeros as asked and where they hurt least, what makes up for them, and what is left dense with a reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from qcompiler.errors import UsageError
from qcompiler.model.edit import constant_of
from qcompiler.model.folding import folded
from qcompiler.plan import CompressionPlan, Role
from qcompiler.pruning.choice import best_way, ways_to_divide
from qcompiler.pruning.curves import measured_curves
from qcompiler.pruning.prunable import prunable
from qcompiler.pruning.walk import Walk
from qcompiler.quant.grid import dequantize
from qcompiler.recipe import Floors, MatchRule, Recipe, bits_fields
from qcompiler.records import Floor, Verdict
from qcompiler.registry import load_target, make_pass
from qcompiler.repair.bits import rescaling
from qcompiler.repair.regions import FEWER_ZEROS, Repair
from qcompiler.runtime.available import check_target
from qcompiler.runtime.capture import Executor
from qcompiler.sparsity import parse_sparsity
from qcompiler.trials.acceptance import FileSize
from tests.compiling import lowered, outputs, run_passes, samples, start
from tests.models import FLOAT, build, conv_net, token_net
from tests.passes.test_pack_bits import wider_branches, wider_loop
from tests.passes.test_solve_codes import mixed_net

READY = ("fold-batch-norm", "place", "observe", "scale-weights")


def ready(proto, sparsity="0.5", *, passes=READY, count=12, target="x86", bits="W8A8", **fields):
    state = start(proto)
    recipe = Recipe(sparsity=parse_sparsity(sparsity) if sparsity else None, **bits_fields(bits), **fields)
    where = replace(_context(state, target, count), recipe=recipe)
    return run_passes(state, where, *passes), where


def _context(state, target, count):
    from tests.compiling import context

    return context(target, samples(state.model, count, free=3))


def pruned(proto, sparsity="0.5", spec="prune", **options):
    state, where = ready(proto, sparsity, **options)
    result = make_pass(spec).run(state, where)
    return state, result.state, result.report, where


def weights(plan: CompressionPlan):
    return {t.name: t for t in plan.tensors.values() if t.role is Role.WEIGHT}


def sparsity_of(state):
    """Return the share of pruned weights over all planned ones."""
    sizes = {name: state.model.graph.initializers[name].const_value.size for name in weights(state.plan)}
    zeros = sum((t.sparsity or 0.0) * sizes[name] for name, t in weights(state.plan).items())
    return zeros / sum(sizes.values())


def output_db(state: ir.Model, model: ir.Model, where) -> float:
    name = state.graph.outputs[0].name
    first, second = Executor(state, [name]), Executor(model, [name])
    fresh = samples(state, 8, seed=77)
    pairs = [(first.run(fresh[i])[name], second.run(fresh[i])[name]) for i in range(8)]
    return 10 * np.log10(sum((a**2).sum() for a, _ in pairs) / sum(((a - b) ** 2).sum() for a, b in pairs))


@pytest.mark.parametrize("sparsity", ["0.3", "0.6", "60%", "0.6:uniform"])
def test_the_weights_of_all_layers_together_are_as_sparse_as_asked(sparsity):
    _, after, report, _ = pruned(mixed_net(), sparsity)
    wanted = 0.3 if sparsity == "0.3" else 0.6
    assert sparsity_of(after) == pytest.approx(wanted, abs=0.01)
    assert {m.name: m.value for m in report.metrics}["sparsity"] == pytest.approx(100 * sparsity_of(after), abs=0.01)
    changed = [t for t in weights(after.plan).values() if t.sparsity is not None]
    assert len(changed) == len(report.tables[0].rows) > 0
    for entry in changed:
        assert entry.codes.dtype == np.int8
        assert entry.sparsity == pytest.approx(float((entry.codes == 0).mean()))
        assert entry.decided_by[-1] == "prune"
        assert "zeros by" in entry.reason


def test_the_first_and_the_last_layer_take_part_and_shares_differ_by_layer():
    _, after, report, _ = pruned(mixed_net(), "0.95")
    found = weights(after.plan)
    assert found["w1"].sparsity > 0
    assert found["w4"].sparsity > 0
    assert len({round(t.sparsity, 2) for t in found.values() if t.sparsity}) > 2
    assert [row.name for row in report.tables[0].rows] == [n for n in found if found[n].sparsity is not None]
    even = weights(pruned(mixed_net(), "0.5:uniform")[1].plan)
    assert all(abs(t.sparsity - 0.5) < 0.02 + 1 / t.codes.size for t in even.values())


def test_second_order_and_measured_shares_beat_magnitudes():
    levels = {}
    for sparsity, spec in (("0.6:uniform", "prune{methods=magnitude}"), ("0.6:uniform", "prune"), ("0.6", "prune")):
        state, after, _, where = pruned(mixed_net(), sparsity, spec, count=48)
        done = run_passes(after, where, "calibrate{method=minmax}", "correct-bias")
        levels[sparsity, spec] = output_db(state.model, lowered(done, where).model, where)
    plain, second, measured = levels.values()
    assert second > plain + 2
    assert measured > plain + 2


def test_the_result_runs_with_exactly_the_planned_zeros():
    state, after, _, where = pruned(mixed_net(), "0.7")
    done = run_passes(after, where, "calibrate{method=minmax}", "correct-bias")
    model = lowered(done, where).model
    for node in state.model.graph:
        entry = after.plan.tensors.get(node.inputs[1].name) if len(node.inputs) > 1 else None
        if entry is None:
            continue
        there = next(n for n in model.graph if n.name == node.name)
        stored = folded(there.inputs[1].producer().inputs[0])
        np.testing.assert_array_equal(stored, entry.codes)


def test_biases_give_every_channel_its_mean_back():
    _, after, _, where = pruned(mixed_net(), "0.6:uniform", count=24)
    for node in ("first", "last"):
        entry = after.plan.tensors[f"{node}:bias"]
        assert entry.decided_by == ("prune",)
        assert np.abs(entry.correction).max() > 0
    later = run_passes(after, where, "calibrate{method=minmax}", "correct-bias")
    assert later.plan.tensors["first:bias"] is after.plan.tensors["first:bias"]


@pytest.mark.parametrize("sparsity", ["", "0", "0%"])
def test_nothing_asked_is_nothing_done(sparsity):
    state, after, report, _ = pruned(mixed_net(), sparsity)
    assert after.plan is state.plan
    assert not report.changed


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_few_bits_keep_to_levels_that_have_a_zero(bits):
    _, after, _, _ = pruned(mixed_net(), "0.5:uniform", bits=f"W{bits}A8:uniform", passes=READY)
    for entry in weights(after.plan).values():
        assert entry.spec.num_bits == bits
        assert 0 in entry.levels
        assert len(entry.levels) <= 2**bits
        assert np.isin(entry.codes, entry.levels).all()
        assert entry.sparsity >= 0.1


def test_a_single_bit_has_no_zero_and_stays():
    state, where = ready(mixed_net())
    one = [replace(t, spec=replace(t.spec, num_bits=1)) for t in weights(state.plan).values() if t.name == "w3"]
    result = make_pass("prune").run(replace(state, plan=state.plan.with_tensors(*one)), where)
    assert [s.reason for s in result.report.skipped if s.tensor == "w3"] == ["left dense: codes of one bit have no 0"]
    assert result.state.plan.tensors["w3"].sparsity is None


def test_a_layer_of_one_weight_stays():
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one"),
        helper.make_node("Conv", ["a", "w2"], ["y"], name="two"),
    ]
    constants = {"w1": np.full((1, 1, 1, 1), 0.5, np.float32), "w2": np.ones((8, 1, 3, 3), np.float32)}
    proto = build(nodes, [("x", FLOAT, [1, 1, 6, 6])], [("y", FLOAT, [1, 8, 4, 4])], constants)
    state, after, report, _ = pruned(proto, "0.9")
    assert after.plan.tensors["w1"] is state.plan.tensors["w1"]
    assert any("a single number" in s.reason for s in report.skipped)
    assert (after.plan.tensors["w2"].codes == 0).sum() == round(0.9 * 72)


def test_what_does_not_fit_in_memory_is_ranked_by_magnitude_or_left_dense_and_says_so():
    state, where = ready(mixed_net(), "0.5:uniform", max_memory_bytes=40_000)
    result = make_pass("prune").run(state, where)
    notes = {row.name: row.note for row in result.report.tables[0].rows}
    assert notes["w3"] == "alternating"
    assert "magnitude: second order takes" in notes["w2"] or notes["w2"] == "alternating"
    assert "ranking 1,920 weights takes" in next(s.reason for s in result.report.skipped if s.tensor == "w4")


def test_without_samples_magnitudes_decide():
    state, where = ready(mixed_net())
    result = make_pass("prune").run(state, replace(where, calibration=None))
    assert {row.note for row in result.report.tables[0].rows} == {"magnitude: there are no samples"}
    assert sparsity_of(result.state) == pytest.approx(0.5, abs=0.01)
    for name, entry in weights(result.state.plan).items():
        if entry.sparsity is None:
            continue
        kept = entry.codes != 0
        exact = constant_of(state.model.graph.initializers[name])
        assert np.abs(exact)[kept].min() >= np.abs(exact)[~kept].max() * 0.99 - float(entry.scale.max())


def test_a_method_too_slow_for_a_layer_gives_way_to_the_next():
    _, _, report, _ = pruned(mixed_net(), "0.5:uniform", "prune{limit=300000}")
    notes = [row.note for row in report.tables[0].rows]
    assert "surgeon: the layer is too large for alternating" in notes or any(n.startswith("magnitude: ") for n in notes)
    with pytest.raises(UsageError, match="method 'luck' is none of magnitude, surgeon, alternating"):
        make_pass("prune{methods=luck}")


def test_rules_prescribe_the_sparsity_of_layers():
    rules = (MatchRule(pattern="^last$", sparsity=0.0), MatchRule(pattern="^first$", sparsity=0.75))
    _, after, _, _ = pruned(mixed_net(), "0.1", rules=rules)
    assert after.plan.tensors["w4"].sparsity is None
    assert after.plan.tensors["w1"].sparsity == pytest.approx(0.75, abs=0.01)


def test_products_without_bias_are_pruned_too():
    _, after, _, _ = pruned(token_net(), "0.5")
    found = [t for t in weights(after.plan).values() if t.sparsity is not None]
    assert found
    assert all(t.sparsity < 1 for t in found)


@pytest.mark.parametrize("proto", [wider_branches(), wider_loop()], ids=["If", "Loop"])
def test_weights_inside_graphs_lose_their_smallest_and_the_float_model_with_them_is_measured(proto):
    state, after, report, where = pruned(proto, "0.6")
    found = {name: t.sparsity for name, t in weights(after.plan).items()}
    assert found
    assert all(share == pytest.approx(0.6, abs=0.25) for share in found.values())
    assert {row.note.partition(":")[0] for row in report.tables[0].rows} == {"magnitude"}
    entries, context = prunable(state, where, ["magnitude"], 1e12)[0], where
    walk = Walk(state, context, dict.fromkeys(found, 0.6), None, "prune")
    _, model = walk.run(entries)
    feeds = where.calibration.samples
    assert any(not np.array_equal(outputs(model, f)[0], outputs(state.model, f)[0]) for f in feeds)
    (curve, *_) = measured_curves(state, entries, context, None).ways.popitem()[1]
    assert curve.slope > 0


def test_a_file_size_decides_the_sparsity():
    proto = conv_net(channels=64)
    state, where = ready(proto, "auto", floors=Floors(max_size_bytes=1))
    where = replace(where, size=FileSize(where))
    with pytest.raises(UsageError, match=r"--max-size 1 bytes cannot be met by zeros: .* ask for at least that"):
        make_pass("prune").run(state, where)
    whole = FileSize(where)(state)
    asked = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=whole - 1500)))
    found = make_pass("prune").run(state, asked).state.sparsity_search
    assert 0.1 < found.sparsity < 0.9
    roomy = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=2 * whole)))
    assert make_pass("prune").run(state, roomy).state.sparsity_search.sparsity < 2e-3


def test_a_share_and_a_size_that_contradict_each_other_are_refused():
    state, where = ready(conv_net(channels=64), "0.1", floors=Floors(max_size_bytes=3000))
    with pytest.raises(UsageError, match=r"--sparsity 0.1 and --max-size 3000 bytes contradict each other"):
        make_pass("prune").run(state, replace(where, size=FileSize(where)))


def test_the_floors_decide_the_sparsity_where_nothing_else_does():
    state, where = ready(mixed_net(), "auto")
    tried = []

    def acceptable(found):
        tried.append(sparsity_of(found))
        return tried[-1] <= 0.42

    result = make_pass("prune").run(state, replace(where, acceptable=acceptable))
    assert result.state.sparsity_search.sparsity == pytest.approx(0.4, abs=0.01)
    assert len(tried) <= 5
    with pytest.raises(UsageError, match="--sparsity auto needs samples"):
        make_pass("prune").run(state, where)


def missed(reached=0.5):
    floor = Floor(
        name="agreement of 'y'",
        limit=0.9,
        unit="share",
        direction="at least",
        asked_by="user",
        reached=reached,
        held=False,
    )
    return Verdict(loaded=True, data="held-out samples", samples=3, floors=(floor,))


def test_repair_keeps_ever_more_weights_and_then_all_of_them():
    _, after, _, where = pruned(mixed_net(), "0.7")
    done = run_passes(after, where, "calibrate{method=minmax}", "correct-bias")
    repair = Repair(where, done, rescaling([make_pass(n) for n in ("scale-weights", "prune", "correct-bias")], where))
    before = [0.7]
    for _ in range(4):
        state = repair.propose(missed(), ())
        before.append(sparsity_of(state))
        assert before[-1] < before[-2]
        assert state.sparsity_search.sparsity == pytest.approx(before[-1], abs=0.02)
    assert [s.action.partition(" (")[0] for s in repair.steps] == [FEWER_ZEROS] * 4
    assert "70.0 ->" in repair.steps[0].action
    repair.propose(missed(), ())
    assert repair.steps[-1].action.partition(" (")[0] != FEWER_ZEROS


def test_repair_gives_up_neither_a_size_limit_nor_a_pattern():
    _, after, _, where = pruned(mixed_net(), "0.7")
    for recipe in (
        replace(where.recipe, floors=Floors(max_size_bytes=10**6)),
        replace(where.recipe, sparsity=parse_sparsity("2:4")),
    ):
        again = replace(where, recipe=recipe)
        repair = Repair(again, after, rescaling([make_pass("prune")], again))
        repair.propose(missed(), ())
        assert not [s for s in repair.steps if s.action.startswith(FEWER_ZEROS)]


def test_patterns_are_only_for_targets_that_run_them():
    recipe = Recipe(sparsity=parse_sparsity("2:4"))
    with pytest.raises(UsageError, match=r"target 'x86' runs no 2:4 sparsity: its kernels .* Use --sparsity 0.5"):
        check_target(load_target("x86"), recipe)
    assert "2:4" in load_target("tensorrt").sparse_patterns
    _, after, _, _ = pruned(mixed_net(), "2:4")  # the pass itself does what it is told
    codes = after.plan.tensors["w3"].codes  # (6, 8, 1, 1)
    assert ((codes.reshape(6, 2, 4) != 0).sum(-1) <= 2).all()


def test_a_layer_that_the_network_hardly_needs_is_measured_to_matter_little():
    rng = np.random.default_rng(0)
    loud, quiet = rng.standard_normal((8, 4, 3, 3)), 0.01 * rng.standard_normal((8, 4, 3, 3))
    nodes = [
        helper.make_node("Conv", ["x", "loud"], ["a"], name="loud_conv"),
        helper.make_node("Conv", ["x", "quiet"], ["b"], name="quiet_conv"),
        helper.make_node("Add", ["a", "b"], ["y"], name="add"),
    ]
    constants = {"loud": loud.astype(np.float32), "quiet": quiet.astype(np.float32)}
    proto = build(nodes, [("x", FLOAT, [1, 4, 8, 8])], [("y", FLOAT, [1, 8, 6, 6])], constants)
    state, where = ready(proto)
    found, _ = prunable(state, where, ["alternating"], 1e12)
    ways = measured_curves(state, found, where, None).ways
    curves = {c.name: c for c in ways["squared error of the outputs over their power"]}
    # Relative errors of both layers are alike, but those of the quiet one are 1e4 times less of the output.
    assert curves["loud"].slope == pytest.approx(1.0, rel=0.2)
    assert curves["quiet"].slope == pytest.approx(1e-4, rel=0.3)
    shares = make_pass("prune").run(state, where).state.sparsity_search.shares
    assert shares["quiet"] > 0.95 > shares["loud"]


def test_later_layers_follow_the_float_model_on_what_earlier_ones_make():
    """The second layer reads errors of the first; its weights move to make up for them even where it keeps all."""
    rules = (
        MatchRule(pattern="^pointwise$|^depthwise$", sparsity=0.05),
        MatchRule(pattern="^first$", sparsity=0.8),
    )
    state, after, _, _ = pruned(mixed_net(), "0.12", rules=rules, count=48)
    entry = after.plan.tensors["w3"]
    exact = constant_of(state.model.graph.initializers["w3"])
    moved = dequantize(entry.codes, entry.scale, entry.zero_point, 0) - exact
    kept = entry.codes != 0
    assert np.abs(moved[kept]).mean() > 3 * float(entry.scale.mean())


def test_the_way_to_divide_zeros_is_chosen_on_samples_that_no_curve_saw():
    state, where = ready(mixed_net(), "0.6", count=24)
    held = replace(where, acceptance=samples(state.model, 8, seed=5))
    curves = measured_curves(state, prunable(state, where, ["alternating"], 1e12)[0], where, None)
    ways = ways_to_divide(curves, held.recipe.sparsity)
    assert [w.uniform for w in ways] == [False] * len(curves.ways) + [True]
    losses = {}

    def loss(search):
        losses[search.unit, search.uniform] = len(losses) * -1.0
        return losses[search.unit, search.uniform]

    assert best_way(ways, held.recipe.sparsity, loss).uniform, "the last has the least loss here"
    assert best_way(ways, held.recipe.sparsity, None) is ways[0]
    result = make_pass("prune").run(state, held)
    assert result.state.sparsity_search.unit in curves.ways
    assert len(ways_to_divide(curves, parse_sparsity("0.6:uniform"))) == 1
