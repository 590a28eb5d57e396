"""Widths by what they cost: budgets, limits, rules, and where nothing is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qcompiler.errors import UsageError
from qcompiler.plan import Role
from qcompiler.quant.allocation import kilobytes, mean_limit
from qcompiler.recipe import Floors, MatchRule, Recipe, bits_fields
from qcompiler.registry import make_pass
from qcompiler.trials.acceptance import FileSize
from tests.attention_nets import separate
from tests.compiling import context, lowered, outputs, run_passes, samples, start
from tests.models import conv_net, token_net

READY = ("fold-batch-norm", "place", "observe")


def ready(proto=None, floors=None, target="x86", rules=(), **fields):
    state = start(conv_net(channels=16) if proto is None else proto)
    where = context(target, samples(state.model, free=3))
    where = replace(where, recipe=Recipe(rules=rules, floors=floors or Floors(), **fields))
    where = replace(where, size=FileSize(where))
    return run_passes(state, where, *READY), where


def widths(state):
    return {t.name: t.spec.num_bits for t in state.plan.tensors.values() if t.role is Role.WEIGHT}


def run(state, where):
    return make_pass("allocate-bits").run(state, where)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        bits_fields("W8A8"),
        bits_fields("W4A8:uniform"),
        {"floors": Floors(max_drop=1.0)},
        {**bits_fields("W8A8"), "floors": Floors(max_size_bytes=10**7, max_drop=0.1), "labels": "l.npy"},
    ],
    ids=["default", "eight", "uniform", "drop-without-metric", "eight-with-limits"],
)
def test_it_does_nothing_where_nothing_asks_for_it(fields):
    state, where = ready(**fields)
    done = run(state, where)
    assert done.state is state
    assert not done.report.changed


def test_a_mean_width_is_held_by_stored_bytes_and_used_up():
    state, where = ready(**bits_fields("W4A8"))
    done = run(state, where)
    search = done.state.bit_search
    chosen = widths(done.state)
    assert chosen == search.widths(search.chosen)
    assert sum(i.code_bytes(chosen[i.name]) for i in search.items) <= mean_limit(search.items, 4)
    assert 3.5 < search.chosen.mean_bits <= 4
    assert len(set(chosen.values())) > 1, "layers differ"
    uniform = sum(i.loss_at(4) for i in search.items)
    assert search.chosen.loss < uniform
    entries = [t for t in done.state.plan.tensors.values() if t.role is Role.WEIGHT]
    assert all(t.decided_by[-1] == "allocate-bits" and f"{t.spec.num_bits} bit" in t.reason for t in entries)


def test_the_allocated_state_compiles_and_runs():
    state, where = ready(**bits_fields("W3A8"))
    done = run_passes(run(state, where).state, where, "scale-weights", "calibrate{method=minmax}", "correct-bias")
    model = lowered(done, where).model
    found = outputs(model, where.calibration[0])[0]
    assert found.shape == outputs(state.model, where.calibration[0])[0].shape


def test_one_bit_weights_are_signs():
    rules = (MatchRule(pattern="^pw$", num_bits=1),)
    state, where = ready(rules=rules, **bits_fields("W4A8"))
    done = run_passes(run(state, where).state, where, "scale-weights", "calibrate{method=minmax}")
    entry = done.plan.tensors[next(n.inputs[1].name for n in state.model.graph if n.name == "pw")]
    assert entry.spec.num_bits == 1
    assert entry.levels.tolist() == [-1, 1]
    assert (entry.scale > 0).all()
    assert outputs(lowered(done, where).model, where.calibration[0])[0].size


def test_rules_are_kept_and_the_others_share_what_is_left():
    rules = (MatchRule(pattern="^fc$", num_bits=7), MatchRule(pattern="^dw$", num_bits=2))
    state, where = ready(rules=rules, **bits_fields("W4A8"))
    done = run(state, where)
    found = {n.name: widths(done.state).get(n.inputs[1].name) for n in state.model.graph if len(n.inputs) > 1}
    assert (found["fc"], found["dw"]) == (7, 2)
    assert done.state.bit_search.chosen.mean_bits <= 4
    reasons = {t.reason for t in done.state.plan.tensors.values()}
    assert {"7 bits: set by [match]", "2 bits: set by [match]"} <= reasons


def test_eight_bits_stay_where_they_fit_the_size():
    state, where = ready(floors=Floors(max_size_bytes=10**7))
    done = run(state, where)
    assert done.state is state
    assert done.report.notes == ("8 bits everywhere keep to the size limit",)


def big_net():
    return conv_net(channels=64)


def test_a_size_limit_is_met_by_prediction():
    state, where = ready(big_net())
    full = where.size(state)
    where = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=full - 1500)))
    search = run(state, where).state.bit_search
    assert search.fixed_bytes + search.chosen.stored_bytes <= full - 1500
    assert search.chosen.mean_bits < 8


def test_a_size_that_cannot_be_met_names_the_least():
    state, where = ready(big_net(), floors=Floors(max_size_bytes=100))
    with pytest.raises(UsageError, match="--max-size 100 bytes cannot be met: 1 bit everywhere takes"):
        run(state, where)


@pytest.mark.parametrize("bits", ["W8A8", "W4A8:uniform"])
def test_one_width_and_a_size_that_contradict_each_other_name_what_it_takes(bits):
    state, where = ready(big_net(), **bits_fields(bits))
    size = where.size(state)
    held = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=size)))
    assert run(state, held).state is state
    tight = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=round(size * 0.9))))
    with pytest.raises(UsageError) as caught:
        run(state, tight)
    said = f" and --bits {bits} contradict each other: these widths take {kilobytes(size, up=True)}; ask for at least"
    assert said in str(caught.value)


def test_what_accuracy_needs_is_known_where_the_size_leaves_no_room_for_it():
    state, where = ready(big_net(), **bits_fields("auto"))
    full = where.size(state)
    floors = Floors(max_size_bytes=full - 1500)
    where = replace(
        where, recipe=replace(where.recipe, floors=floors), acceptable=lambda s: set(widths(s).values()) == {8}
    )
    search = run(state, where).state.bit_search
    assert search.fixed_bytes + search.chosen.stored_bytes <= full - 1500
    assert full - 1500 < search.needed_bytes <= full + 8
    roomy = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=full + 8)))
    search = run(state, roomy).state.bit_search
    assert search.fixed_bytes + search.chosen.stored_bytes == search.needed_bytes
    hopeless = run(state, replace(where, acceptable=lambda _: False)).state.bit_search
    assert hopeless.needed_bytes is None


@pytest.mark.parametrize(
    ("target", "why"),
    [("x86", "x86 unpacks weights once"), ("qnn", "nothing is known about what a width costs on qnn")],
)
def test_a_limit_on_latency_is_no_matter_of_widths_and_that_is_said(target, why):
    bits = bits_fields("W4A8")
    notes = [run(*ready(target=target, floors=Floors(max_latency_ratio=r), **bits)).report.notes for r in (0.9, None)]
    assert any(why in note and note.startswith("--max-latency-ratio") for note in notes[0])
    assert not any("latency" in note for note in notes[1])


def test_the_smallest_acceptable_point_is_found():
    state, where = ready(**bits_fields("auto"))
    limit = 0.01
    asked = []

    def acceptable(candidate):
        found = widths(candidate)
        loss = sum(i.loss_at(found[i.name]) for i in run.items)
        asked.append(loss)
        return loss <= limit

    run.items = make_pass("allocate-bits").run(*ready(**bits_fields("W4A8"))).state.bit_search.items
    done = make_pass("allocate-bits").run(state, replace(where, acceptable=acceptable))
    search = done.state.bit_search
    assert search.chosen.loss <= limit
    stride = -(-len(search.points) // 48)
    place = search.points.index(search.chosen)
    assert search.points[max(place - stride, 0)].loss > limit or place == 0
    assert len(asked) <= 8


def test_nothing_acceptable_leaves_eight_bits():
    state, where = ready(**bits_fields("auto"))
    done = make_pass("allocate-bits").run(state, replace(where, acceptable=lambda _: False))
    assert set(widths(done.state).values()) == {8}


def test_auto_without_data_is_refused():
    state, where = ready(**bits_fields("auto"))
    with pytest.raises(UsageError, match="--bits auto needs samples"):
        run(state, where)


def test_unmeasured_widths_need_no_run():
    state, where = ready(**bits_fields("W4A8"))
    done = make_pass("allocate-bits{measured=false}").run(state, where)
    assert done.state.bit_search.trials == 0
    assert done.state.bit_search.chosen.mean_bits <= 4


def test_a_model_without_such_weights_is_left_alone():
    proto = token_net(words=600)
    kept = [n for n in proto.graph.node if n.op_type == "Gather"]
    state, where = ready(proto, **bits_fields("W4A8"))
    assert kept
    done = run(state, where)
    tables = {n.inputs[0].name for n in state.model.graph if n.op_type == "Gather"}
    items = {i.name for i in done.state.bit_search.items} if done.state.bit_search else set()
    assert not tables & items


def test_a_transformer_has_its_bits_reported_by_sublayer():
    state, where = ready(separate()[0], **bits_fields("W4A8"))
    done = run(state, where)
    (table,) = done.report.tables
    (row,) = table.rows
    assert row.name == "self-attention"
    assert row.values[0] == sum(item.weights for item in done.state.bit_search.items)
    assert row.values[3] == pytest.approx(done.state.bit_search.chosen.loss, rel=1e-3)


def test_a_network_without_attention_has_no_such_table():
    state, where = ready(**bits_fields("W4A8"))
    assert run(state, where).report.tables == ()
