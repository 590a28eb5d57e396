"""Repair below 8 bits: the next allocation, the damage of layers, and what searches judge by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.layers import MAX_FRONTIER, frontier_report
from qcompiler.plan import Role
from qcompiler.quant.allocation import kilobytes
from qcompiler.recipe import Floors, MatchRule, Recipe, bits_fields
from qcompiler.records import Floor, RepairStep, Verdict
from qcompiler.registry import make_pass
from qcompiler.repair.bits import (
    more_bits_help,
    next_point,
    other_widths,
    ranked_damage,
    rescaling,
    rewidened,
    widened,
    with_actions,
    with_nearest,
)
from qcompiler.repair.regions import (
    DAMAGING,
    FEWER_BITS,
    MAX_REPAIRS,
    MORE_BITS,
    NO_ROOM,
    NO_WIDER,
    Repair,
    compute_nodes,
)
from qcompiler.report.digest import floor_sentence
from qcompiler.state import Fact
from qcompiler.trials.acceptance import FileSize, FloorCheck, agreement, cosine, expected_drop, sqnr_db
from qcompiler.trials.trial import Trial
from tests.compiling import lowered, run_passes, samples, serialized
from tests.models import conv_net
from tests.passes.test_allocate_bits import ready, run, widths
from tests.passes.test_matmul_nbits import planned as blockwise
from tests.passes.test_matmul_nbits import product as gemm_net

FINISH = ("scale-weights", "calibrate{method=minmax}", "correct-bias")


@pytest.fixture(scope="module")
def decided():
    state, where = ready(conv_net(channels=128), **bits_fields("W2A8"))
    where = replace(where, trial=Trial(state.model, where.target, samples(state.model, 3, seed=9), where))
    return run_passes(run(state, where).state, where, *FINISH), where


def missed(unit="dB", limit=20.0, reached=10.0, name="SQNR of 'scores'"):
    direction = "at least" if unit == "dB" else "at most"
    floor = Floor(name=name, limit=limit, unit=unit, direction=direction, asked_by="user", reached=reached, held=False)
    return Verdict(loaded=True, data="held-out samples", samples=3, floors=(floor,))


def test_missing_decibels_ask_for_as_much_less_loss(decided):
    search = decided[0].bit_search
    point = next_point(search, missed(), Recipe())
    assert point.loss <= search.chosen.loss * 10**-1.05
    place = search.points.index(point)
    assert search.points[place - 1].loss > search.chosen.loss * 10**-1.05, "and no more bits than that"


def test_every_further_try_asks_for_ever_less_loss(decided):
    search = decided[0].bit_search
    agreement = missed("share", 0.9, 0.5, "agreement of 'scores'")
    points = [next_point(search, agreement, Recipe(), raised) for raised in range(4)]
    for point, share in zip(points, (0.6, 0.36, 0.1296, 0.0168), strict=True):
        assert point is search.points[-1] or point.loss <= share * search.chosen.loss
    assert points[0].stored_bytes < points[2].stored_bytes <= points[3].stored_bytes


def test_bits_are_not_spent_where_they_do_not_help(decided):
    """The trial stands for a network whose activations do the damage."""
    state, where = decided
    assert more_bits_help(state, where)
    assert more_bits_help(state, replace(where, trial=None)), "nothing is known without a trial"
    deaf = replace(where, trial=lambda other: 5.0 + (len(compute_nodes(other)) < len(compute_nodes(state))) * 20.0)
    assert not more_bits_help(state, deaf)
    repair = Repair(deaf, state, rescaling([make_pass(n) for n in ("place", *FINISH)], deaf))
    assert repair.propose(missed(), ()) is not None
    assert [s.action for s in repair.steps] == [DAMAGING]
    assert weight_bits(repair.planned) == weight_bits(state)


def test_layers_still_go_back_to_float_when_bits_are_used_up(decided):
    state, where = decided
    where = replace(where, trial=lambda other: 5.0 * (len(compute_nodes(other)) < len(compute_nodes(state))))
    repair = Repair(where, state, rescaling([make_pass(n) for n in ("place", *FINISH)], where))
    repair.steps = [RepairStep(action=MORE_BITS, layers=(), outcome="")] * MAX_REPAIRS
    assert repair.propose(missed(), ()) is not None
    assert repair.steps[-1].action == DAMAGING


def test_a_size_limit_is_never_given_up_for_accuracy(decided):
    search = decided[0].bit_search
    limit = search.fixed_bytes + search.chosen.stored_bytes
    tight = next_point(search, missed(), Recipe(floors=Floors(max_size_bytes=limit)))
    assert tight is None or (tight.stored_bytes <= search.chosen.stored_bytes and tight.loss < search.chosen.loss)
    wide = next_point(search, missed(), Recipe(floors=Floors(max_size_bytes=limit + 60)))
    assert wide is None or wide.stored_bytes <= search.chosen.stored_bytes + 60


def test_a_missed_floor_names_the_size_that_would_hold_it(decided):
    state, where = decided
    known = replace(state, bit_search=replace(state.bit_search, needed_bytes=26_100))
    tight = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=22_000)))
    (floor,) = with_nearest(missed(), known, tight).floors
    said = (
        "is 10.0 dB where at least 20.0 dB was asked (--max-size 22KB leaves no room for it: about 27KB would hold it)"
    )
    assert floor_sentence(floor) == f"SQNR of 'scores' {said}"
    roomy = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=30_000)))
    for verdict, found, context in (
        (missed("bytes", 5, 9, "file size"), known, tight),
        (missed("of the original", 1.0, 1.2, "latency ratio"), known, tight),
        (missed(), known, roomy),
        (missed(), known, where),
        (missed(), state, tight),
        (missed(), replace(state, bit_search=None), tight),
    ):
        assert with_nearest(verdict, found, context) == verdict


def test_the_size_that_would_hold_a_missed_floor_is_searched_for_where_nobody_knew_it(decided):
    state, where = decided
    search = state.bit_search
    limit = search.fixed_bytes + search.chosen.stored_bytes
    floors = Floors(max_size_bytes=limit)
    rounded = []

    def acceptable(candidate):
        rounded.append(Fact.WEIGHT_SCALES not in candidate.facts)
        return set(widths(candidate).values()) == {8}

    context = replace(where, recipe=replace(where.recipe, floors=floors), acceptable=acceptable)
    (floor,) = with_nearest(missed(), state, context).floors
    full = search.fixed_bytes + search.points[-1].stored_bytes
    assert kilobytes(full, up=True) in floor.detail
    assert set(rounded) == {True}, "wider weights need new scales"
    assert with_nearest(missed(), state, replace(context, acceptable=lambda _: False)) == missed()


@pytest.mark.parametrize("limit", [1, None])
def test_damage_is_ranked_also_where_no_more_bits_can_be_had(decided, limit):
    state, where = decided
    wide = replace(state, bit_search=replace(state.bit_search, points=(state.bit_search.chosen,)))
    where = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=limit)), trial=lambda _: 1.0)
    repair = Repair(where, wide, rescaling([make_pass(n) for n in ("place", *FINISH)], where))
    assert repair.propose(missed(), ()) is None
    assert repair.damages
    assert {d.action for d in repair.damages} == {NO_WIDER if limit is None else NO_ROOM}


def test_a_file_too_large_gets_the_best_smaller_point(decided):
    search = decided[0].bit_search
    point = next_point(search, missed("bytes", 1000.0, 1100.0, "file size"), Recipe())
    assert point.stored_bytes <= search.chosen.stored_bytes - 100
    assert next_point(search, missed("bytes", 0.0, 1e9, "file size"), Recipe()) is None


def test_what_the_written_file_takes_decides_how_many_bits_there_is_room_for(decided):
    """By the estimate a better point would fit; the file that was written fills the limit already."""
    state, where = decided
    search = state.bit_search
    better = search.smallest_within(search.chosen.loss / 2)
    limit = search.fixed_bytes + better.stored_bytes
    where = replace(where, recipe=replace(where.recipe, floors=Floors(max_size_bytes=limit)))
    agreement = missed("share", 0.9, 0.5, "agreement of 'scores'")
    assert other_widths(state, agreement, where, 0).state.bit_search.chosen.stored_bytes > search.chosen.stored_bytes
    full = replace(agreement, file_bytes={"original": 9 * limit, "model.onnx": limit - 8, "model.onnx.data": 8})
    found = other_widths(state, full, where, 0)
    assert found is None or found.state.bit_search.chosen.stored_bytes <= search.chosen.stored_bytes


def test_no_allocation_is_tried_twice(decided):
    state, where = decided
    repair = Repair(where, state, rescaling([make_pass(n) for n in ("place", *FINISH)], where))
    assert repair.propose(missed("bytes", 1000.0, 1001.0, "file size"), ()) is not None
    assert state.bit_search.chosen.bits in repair.tried
    smaller = repair.planned
    point = next_point(smaller.bit_search, missed(), where.recipe)
    assert other_widths(smaller, missed(), where, 0) is not None
    assert other_widths(smaller, missed(), where, 0, {point.bits}) is None


def test_layers_stay_in_integers_where_the_weights_alone_do_the_damage(decided):
    state, where = decided
    search = state.bit_search
    limit = search.fixed_bytes + search.chosen.stored_bytes
    recipe = replace(where.recipe, floors=Floors(max_size_bytes=limit))
    for gain, actions in ((0.5, []), (5.0, [DAMAGING])):
        trial = lambda s, g=gain: g * (len(compute_nodes(s)) < len(compute_nodes(state)))  # noqa: E731
        judged = replace(where, recipe=recipe, trial=trial)
        repair = Repair(judged, state, rescaling([make_pass(n) for n in ("place", *FINISH)], judged))
        assert (repair.propose(missed(), ()) is None) == (not actions)
        assert [s.action for s in repair.steps] == actions


def test_other_misses_are_no_matter_of_bits(decided):
    search = decided[0].bit_search
    assert next_point(search, missed("of the original", 1.0, 2.0, "latency ratio"), Recipe()) is None


def test_the_repair_takes_more_bits_and_says_what_did_the_damage(decided):
    state, where = decided
    passes = [make_pass(n) for n in ("place", *FINISH)]
    repair = Repair(where, state, rescaling(passes, where))
    better = repair.propose(missed(), ())
    assert repair.steps[0].action.startswith(MORE_BITS)
    assert set(repair.steps[0].layers) == {n for n, b in widths(better).items() if b != widths(state)[n]}
    assert better.bit_search.chosen.loss < state.bit_search.chosen.loss
    weights = [t for t in better.plan.tensors.values() if t.name in widths(better)]
    assert all(t.scale is not None for t in weights)
    assert serialized(lowered(better, where).model)
    assert repair.damages
    assert [d.damage_db for d in repair.damages] == sorted((d.damage_db for d in repair.damages), reverse=True)
    assert any("->" in d.action for d in repair.damages)
    smaller = repair.propose(missed("bytes", 1000.0, 1100.0, "file size"), ())
    assert smaller is not None
    assert repair.steps[1].action.startswith(FEWER_BITS)


def test_damage_is_what_a_layer_at_eight_bits_gains(decided):
    state, where = decided
    found = ranked_damage(state, where)
    assert found[0].damage_db > 0.1
    assert found[0].cause == "rounding of the weights"
    assert all(d.bits < 8 for d in found)
    assert ranked_damage(state, replace(where, trial=None)) == []
    assert {d.name for d in ranked_damage(replace(state, bit_search=None), where)} == {d.name for d in found}
    assert {d.action for d in with_actions(found, state, "float")} == {"float"}


def test_the_damage_of_a_layer_with_a_scale_for_every_block():
    state, where = blockwise(gemm_net((100, 20), "Gemm", bias=True), bits=3)
    state = run_passes(state, where, "observe", "calibrate{method=minmax}", "correct-bias")
    where = replace(where, trial=Trial(state.model, where.target, samples(state.model, 3, seed=9), where))
    (found,) = ranked_damage(state, where)
    assert (found.name, found.bits, found.cause) == ("node", 3, "rounding of the weights")
    assert found.damage_db > 10, "five bits are 30 dB, of which rounded activations leave less"


@pytest.fixture(scope="module")
def uniform():
    rules = (MatchRule(pattern="^pw$", num_bits=2),)
    state, where = ready(conv_net(channels=128), rules=rules, **bits_fields("W3A8:uniform"))
    where = replace(where, trial=Trial(state.model, where.target, samples(state.model, 3, seed=9), where))
    return run_passes(state, where, *FINISH), where


def weight_bits(state):
    return {t.name: t.spec.num_bits for t in state.plan.tensors.values() if t.role is Role.WEIGHT and t.spec}


def test_a_uniform_plan_stays_uniform_and_gets_more_bits(uniform):
    state, where = uniform
    assert sorted(set(weight_bits(state).values())) == [2, 3]
    repair = Repair(where, state, rescaling([make_pass(n) for n in ("place", *FINISH)], where))
    agreement = missed("share", 0.9, 0.5, "agreement of 'scores'")
    first = repair.propose(agreement, ())
    assert sorted(set(weight_bits(first).values())) == [2, 4], "one bit more, but where a rule prescribes the width"
    assert repair.steps[0].action == f"{MORE_BITS} everywhere (3 -> 4)"
    assert set(repair.steps[0].layers) == {n for n, b in weight_bits(first).items() if b == 4}
    assert {d.action for d in repair.damages} >= {"3 -> 4 bits"}
    assert serialized(lowered(first, where).model)
    second = repair.propose(missed(limit=20.0, reached=7.0), ())
    assert sorted(set(weight_bits(second).values())) == [2, 8], "13 dB are 3 bits, and above 6 whole bytes are taken"
    assert not repair.reverted
    assert repair.propose(agreement, ()) is not None
    assert repair.reverted, "and what 8 bits do not cure goes back to float"


def test_a_uniform_plan_is_not_widened_beyond_a_size_limit(uniform):
    state, where = uniform
    size = FileSize(where)
    now = size(state)
    for limit, possible in ((now, False), (2 * now, True)):
        recipe = replace(where.recipe, floors=Floors(max_size_bytes=limit))
        found = widened(state, missed(), replace(where, recipe=recipe, size=size))
        assert (found is not None) is possible


@pytest.mark.parametrize(("name", "unit"), [("latency ratio", "of the original"), ("file size", "bytes")])
def test_other_misses_widen_nothing(uniform, name, unit):
    state, where = uniform
    assert widened(state, missed(unit, 1.0, 2.0, name), where) is None


def test_whole_bytes_are_not_widened(uniform):
    state, where = ready(conv_net(channels=16), **bits_fields("W8A8"))
    assert widened(run_passes(state, where, *FINISH), missed(), where) is None


def test_biases_that_fitted_other_codes_are_dropped(decided):
    state, _ = decided
    moved = [replace(t, decided_by=("fine-tune",)) for t in state.plan.tensors.values() if t.role is Role.BIAS]
    assert len(moved) > 1
    state = replace(state, plan=state.plan.with_tensors(*moved))
    search = state.bit_search
    wider, changed = rewidened(state, search, search.points[-1])
    readers = {n.name for n in state.model.graph if any(v is not None and v.name in changed for v in n.inputs)}
    left = {t.name.removesuffix(":bias") for t in wider.plan.tensors.values() if t.role is Role.BIAS}
    assert left == {t.name.removesuffix(":bias") for t in moved} - readers


def test_unchanged_widths_keep_their_codes(decided):
    state, _ = decided
    search = state.bit_search
    wider, changed = rewidened(state, search, search.points[-1])
    kept = set(widths(state)) - set(changed)
    assert all(wider.plan.tensors[n].scale is state.plan.tensors[n].scale for n in kept)
    assert all(wider.plan.tensors[n].scale is None for n in changed)
    assert wider.bit_search.chosen is search.points[-1]


def test_the_report_holds_the_frontier(decided):
    state, _ = decided
    found = frontier_report(state)
    assert 2 <= len(found.points) <= MAX_FRONTIER
    sizes = [p.file_bytes for p in found.points]
    assert sizes == sorted(set(sizes))
    assert found.chosen.file_bytes == state.bit_search.fixed_bytes + state.bit_search.chosen.stored_bytes
    assert frontier_report(replace(state, bit_search=None)) is None


def test_the_predicted_file_is_close_to_the_real_one(decided):
    state, where = decided
    real = len(serialized(lowered(state, where).model))
    predicted = state.bit_search.fixed_bytes + state.bit_search.chosen.stored_bytes
    assert predicted == pytest.approx(real, rel=0.35)
    assert FileSize(where)(state) == pytest.approx(real, rel=0.01)


LOGITS = [np.log(np.asarray([[0.6, 0.3, 0.1]])), np.log(np.asarray([[0.5, 0.4, 0.1]]))]
FLIPPED = [np.asarray([[1.0, 0.0, 0.0]]), np.asarray([[0.0, 1.0, 0.0]])]


def test_estimates_of_accuracy():
    assert expected_drop(LOGITS, LOGITS) == 0
    assert expected_drop(LOGITS, FLIPPED) == pytest.approx(100 * 0.1 / 2)
    assert agreement(LOGITS, FLIPPED) == 0.5
    assert sqnr_db(LOGITS, LOGITS) == float("inf")
    assert sqnr_db([np.ones(4)], [np.full(4, 1.1)]) == pytest.approx(20)
    assert cosine([np.asarray([1.0, 0.0])], [np.asarray([1.0, 1.0])]) == pytest.approx(2**-0.5)


def test_wide_states_are_acceptable_and_narrow_ones_are_not():
    state, where = ready(**bits_fields("auto"))
    wide = run_passes(state, where, "scale-weights", "calibrate{method=minmax}")
    narrow, _ = ready(**bits_fields("W1A8:uniform"))
    accepted = samples(state.model, 8, seed=7)
    trial = Trial(state.model, where.target, accepted, where)
    middle = (trial(wide) + trial(narrow)) / 2
    strict = replace(where, recipe=replace(where.recipe, floors=Floors(min_sqnr_db=middle)))
    check = FloorCheck(state.model, accepted, strict)
    assert check(wide)
    assert not check(narrow)
