"""Searches behind the first verified result: what is taken, what is not, and that nothing is lost by any of them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler import compiler
from qcompiler.compiler import CompileResult, compile_model
from qcompiler.errors import FloorMissed, UsageError
from qcompiler.flow import attempt
from qcompiler.flow.improvement import worth_improving
from qcompiler.passes import IMPROVING, PASSES, SETTLING, WITH_DATA
from qcompiler.plan import Role
from qcompiler.recipe import MAX_EFFORT, Floors, Recipe, bits_fields
from qcompiler.state import Fact
from tests import searches
from tests.compiling import planned, run_passes, samples, start
from tests.models import conv_net, dense_net, save

LOOSE = Floors(min_sqnr_db=1.0, min_agreement=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a small net and data for it."""
    made = tmp_path_factory.mktemp("improvement")
    net = dense_net(width=64)
    data = samples(start(net).model, count=192)
    np.savez(made / "data.npz", **{k: np.concatenate([s[k] for s in data.samples]) for k in data[0]})
    save(net, made)
    return made


def compile_in(folder: Path, *names: str, out: str, **asked) -> CompileResult:
    """Compile a small net, with some searches behind a spoiled first result."""
    recipe = Recipe(
        targets=("reference",),
        data=str(folder / "data.npz"),
        floors=asked.pop("floors", LOOSE),
        passes=(*WITH_DATA, "spoil", *names),
        **asked,
    )
    with pytest.MonkeyPatch.context() as patch:
        searches.provide(patch)
        (result,) = compile_model(folder / "model.onnx", recipe=recipe, out=folder / out, force=True)
    return result


@pytest.fixture(scope="module")
def plain(folder):
    """Return the first result, without a search behind it."""
    return compile_in(folder, out="plain")


@pytest.fixture(scope="module")
def mended(folder):
    """Return the result of a search that finds something."""
    return compile_in(folder, "mend", out="mended")


@pytest.fixture
def compiled(folder, request):
    """Give a function that compiles with some searches."""
    return functools.partial(compile_in, folder, out=request.node.name.replace("/", "-"))


def outcomes(result) -> list[str]:
    return [stage.outcome for stage in result.report.search.stages]


def sqnr(result) -> float:
    return min(o.sqnr_db for o in result.report.verdict.outputs)


def files(result) -> dict[str, bytes]:
    return {n: (result.folder / n).read_bytes() for n in ("model.onnx", "plan.json", "plan.npz")}


def test_without_searches_there_is_nothing_to_say(plain):
    assert plain.report.search is None
    assert plain.report.repairs == ()


def test_a_better_plan_is_what_is_written(plain, mended):
    search = mended.report.search
    assert (search.ended, outcomes(mended)) == ("complete", ["verified", "better"])
    assert search.stages[1].before_db == search.stages[0].after_db < search.stages[1].after_db
    assert sqnr(mended) > sqnr(plain)
    assert files(mended)["model.onnx"] != files(plain)["model.onnx"]
    assert "mended" in (mended.folder / "plan.json").read_text()
    assert [p.name for p in mended.report.passes].count("mend") == 1
    assert sorted(p.name for p in mended.folder.iterdir()) == sorted(p.name for p in plain.folder.iterdir())
    onnx.checker.check_model(str(mended.folder / "model.onnx"))


@pytest.mark.parametrize(
    ("name", "outcome", "detail"),
    [
        ("worsen", "not better", ""),
        ("rest", "nothing to do", "all is well"),
        ("fail", "failed", "ZeroDivisionError: no way out"),
        ("fail{memory=true}", "failed", "out of memory"),
    ],
)
def test_what_gains_nothing_changes_nothing(compiled, plain, name, outcome, detail):
    tried = compiled(name)
    assert files(tried) == files(plain)
    assert outcomes(tried) == ["verified", outcome]
    assert tried.report.search.stages[1].detail == detail
    assert tried.report.verdict.held
    assert name.split("{")[0] not in [p.name for p in tried.report.passes]


def test_the_search_goes_on_behind_one_that_fails_and_from_the_best_plan(compiled, mended):
    after = compiled("fail", "worsen", "mend", "mend")
    assert outcomes(after) == ["verified", "failed", "not better", "better", "not better"]
    assert files(after) == files(mended)


def test_what_the_gate_refuses_is_not_written(compiled, plain, monkeypatch):
    verified = []

    def strict(inputs, written, result):
        found = verify(inputs, written, result)
        verified.append(result)
        if len(verified) == 1:
            return found
        failed = dataclasses.replace(found.verdict, failure="it does not run")
        return dataclasses.replace(found, verdict=failed)

    verify = attempt.verify
    monkeypatch.setattr(attempt, "verify", strict)
    tried = compiled("mend")
    assert outcomes(tried) == ["verified", "gate missed"]
    assert tried.report.search.stages[1].detail == "it does not run"
    assert len(verified) == 2  # no repair for what would replace a result that needs none
    assert files(tried) == files(plain)


def test_a_better_plan_makes_up_for_a_missed_floor(compiled, plain, mended):
    middle = (sqnr(plain) + sqnr(mended)) / 2
    floors = dataclasses.replace(LOOSE, min_sqnr_db=middle)
    assert compiled(floors=floors).report.repairs
    rescued = compiled("mend", floors=floors)
    assert outcomes(rescued) == ["verified", "better"]
    assert rescued.report.repairs == ()
    assert files(rescued) == files(mended)
    assert rescued.report.verdict.held


def test_a_floor_that_nothing_reaches_is_still_missed(compiled):
    with pytest.raises(FloorMissed) as found:
        compiled("mend", floors=dataclasses.replace(LOOSE, min_sqnr_db=150.0))
    assert outcomes(found.value.results[0])[0] == "floor missed"


def test_when_the_time_is_up_the_best_verified_result_is_written(compiled, monkeypatch):
    monkeypatch.setattr(searches, "wait_if_told", lambda done, context: done == 1 and context.budget.keep_back(1e9))
    result = compiled("mend", "worsen", max_time_s=3600.0)
    search = result.report.search
    assert search.ended == "time"
    assert outcomes(result) == ["verified", "better"]
    assert "not run: worsen" in search.notes
    assert result.report.verdict.held


@pytest.mark.parametrize(("limit", "ended"), [({"max_time_s": 1e-6}, "time"), ({"max_memory_bytes": 1}, "memory")])
def test_the_first_result_is_finished_in_any_case(compiled, plain, limit, ended):
    cut = compiled("mend", **limit)
    assert cut.report.search.ended == ended
    assert outcomes(cut) == ["verified"]
    note = f"the first result took the {ended} there was; it was finished all the same"
    assert cut.report.search.notes == (note, "not run: mend")
    assert files(cut) == files(plain)


def test_a_limit_that_is_not_reached_changes_nothing(compiled, mended):
    limited = compiled("mend", max_time_s=3600.0)
    assert limited.report.search.ended == "complete"
    assert files(limited) == files(mended)


def test_searches_of_an_effort_run_below_eight_bits_only(folder, monkeypatch):
    monkeypatch.setattr(compiler, "IMPROVING", {1: ("mend",)})
    recipe = Recipe(targets=("reference",), data=str(folder / "data.npz"), floors=LOOSE)
    searches.provide(monkeypatch)

    def search(name):
        return compile_model(folder / "model.onnx", recipe=recipe, out=folder / name)[0].report.search

    assert search("wide") is None
    monkeypatch.setattr(compiler, "worth_improving", lambda plan: True)
    assert [s.name for s in search("narrow").stages] == ["first result", "mend"]


def test_one_narrow_weight_is_worth_a_search():
    plan = planned(conv_net())[0].plan
    assert not worth_improving(plan)
    weight = next(t for t in plan.tensors.values() if t.role is Role.WEIGHT and t.spec is not None)
    narrow = dataclasses.replace(weight, spec=dataclasses.replace(weight.spec, num_bits=7))
    assert worth_improving(plan.with_tensors(narrow))


def test_the_table_names_passes_there_are_and_each_effort_those_of_the_lower_one():
    assert set(IMPROVING) <= set(range(1, MAX_EFFORT + 1))
    for effort, names in IMPROVING.items():
        assert set(names) <= set(PASSES)
        assert set(IMPROVING.get(effort - 1, ())) <= set(names)
    assert set(PASSES) >= SETTLING


def test_biases_that_a_search_decided_are_left_alone():
    state, context = planned(conv_net())
    assert Fact.STATISTICS in state.facts
    corrected = run_passes(state, context, "correct-bias")
    bias = next(t for t in corrected.plan.tensors.values() if t.role is Role.BIAS)
    own = dataclasses.replace(bias, correction=bias.correction + 1.0, decided_by=("correct-bias", "mend"))
    again = run_passes(dataclasses.replace(corrected, plan=corrected.plan.with_tensors(own)), context, "correct-bias")
    assert again.plan.tensors[bias.name] is own
    others = [n for n, t in corrected.plan.tensors.items() if t.role is Role.BIAS and n != bias.name]
    assert others
    for name in others:
        assert again.plan.tensors[name].decided_by == ("correct-bias",)


def test_what_writing_needs_is_missed_before_anything_is_decided(folder):
    told: list[str] = []
    recipe = Recipe(targets=("x86",), data=str(folder / "data.npz"), passes=("place", "observe", "scale-weights"))
    with pytest.raises(UsageError, match="'insert-qdq' needs ranges"):
        compile_model(
            folder / "model.onnx",
            recipe=recipe,
            out=folder / "unordered",
            progress=lambda what, done, total: told.append(what),
        )
    assert not {"place", "observe", "scale-weights"} & set(told)
    assert not (folder / "unordered").exists()


def test_a_recorded_plan_is_trained_further(folder):
    pytest.importorskip("torch")
    asked = {"targets": ("x86",), "data": str(folder / "data.npz"), "floors": LOOSE, **bits_fields("W3A8:uniform")}
    rounded = Recipe(effort=0, **asked)
    (first,) = compile_model(folder / "model.onnx", recipe=rounded, out=folder / "rounded", force=True)
    again = Recipe(replay=str(first.folder), **asked)
    (same,) = compile_model(folder / "model.onnx", recipe=again, out=folder / "same", force=True)
    assert same.report.search is None
    assert (same.folder / "model.onnx").read_bytes() == (first.folder / "model.onnx").read_bytes()
    named = (*WITH_DATA, "fine-tune{steps=120}")  # a number of steps, for minutes depend on the machine
    longer = dataclasses.replace(again, fine_tune_minutes=5.0, passes=named)
    (trained,) = compile_model(folder / "model.onnx", recipe=longer, out=folder / "trained", force=True)
    assert [stage.name for stage in trained.report.search.stages] == ["first result", "fine-tune"]
    assert outcomes(trained)[-1] == "better"
    last = trained.report.search.stages[-1]
    assert last.after_db > last.before_db + 0.5
