"""What every pass promises, tried on every pass."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qcompiler.errors import UsageError
from qcompiler.model.fingerprint import structure_fingerprint
from qcompiler.passes import MINIMAL, PASSES, WITH_DATA, WITHOUT_DATA
from qcompiler.pipeline import Pipeline
from qcompiler.plan import Role
from qcompiler.protocols import Pass, PassKind
from qcompiler.registry import load_target, make_pass, target_names
from qcompiler.report.document import to_document, validate
from qcompiler.state import Fact
from tests.passes.states import BEFORE, before, model_bytes, plan_bytes, statistics_digest
from tests.report.builder import make_report

every_pass = pytest.mark.parametrize("name", sorted(PASSES))


def test_every_pass_has_a_state_here():
    assert set(BEFORE) == set(PASSES)


@every_pass
def test_it_is_a_frozen_pass_of_its_name(name):
    step = make_pass(name)
    assert isinstance(step, Pass)
    assert step.name == name
    assert hash(step) == hash(make_pass(name))
    for facts in (step.requires, step.provides, step.invalidates):
        assert facts <= frozenset(Fact)


@every_pass
def test_it_refuses_to_run_where_a_fact_is_missing(name):
    step = make_pass(name)
    for fact in step.requires:
        with pytest.raises(UsageError, match=f"'{name}' needs {fact}"):
            Pipeline((step,)).check_order(frozenset(Fact) - {fact})
    Pipeline((step,)).check_order(frozenset(step.requires))


@every_pass
def test_it_does_something_the_same_every_time(name):
    state, where = before(name)
    first, second = (make_pass(name).run(state, where) for _ in range(2))
    assert first.report.changed
    assert model_bytes(first.state) == model_bytes(second.state)
    assert plan_bytes(first.state.plan) == plan_bytes(second.state.plan)
    assert statistics_digest(first.state) == statistics_digest(second.state)
    assert replace(first.report, seconds=0) == replace(second.report, seconds=0)


@every_pass
def test_it_leaves_the_given_state_alone(name):
    state, where = before(name)

    def everything():
        parts = model_bytes(state), plan_bytes(state.plan), statistics_digest(state), state.facts
        return structure_fingerprint(state.model), *parts

    untouched = everything()
    make_pass(name).run(state, where)
    assert everything() == untouched


@every_pass
def test_it_changes_only_what_its_kind_may(name):
    state, where = before(name)
    step = make_pass(name)
    found = step.run(state, where).state
    if step.kind is PassKind.PLAN:
        assert found.model is state.model
        return
    assert found.model is not state.model
    assert statistics_digest(replace(found, moments={})) == statistics_digest(replace(state, moments={}))
    assert found.plan.nodes is state.plan.nodes
    added = {k: t for k, t in found.plan.tensors.items() if t is not state.plan.tensors.get(k)}
    assert not added if step.kind is PassKind.LOWER else {t.role for t in added.values()} <= {Role.FACTORS}
    names = [[v.name for v in m.graph.inputs] + [v.name for v in m.graph.outputs] for m in (state.model, found.model)]
    assert names[0] == names[1]


@every_pass
def test_its_report_fits_the_schema(name):
    state, where = before(name)
    _, reports = Pipeline((make_pass(name),), check=False).run(state, where)
    assert reports[0].metrics
    validate(to_document(replace(make_report(), passes=reports)))
    json.dumps(reports[0].options)


@every_pass
def test_it_runs_through_the_checks_of_the_pipeline(name):
    state, where = before(name)
    steps = [make_pass(name)]
    if steps[0].kind is PassKind.LOWER:
        steps = [make_pass(n) for n in where.target.lower_passes() if n not in BEFORE[name]]
    after, _ = Pipeline(tuple(steps), where.calibration).run(state, where)
    assert steps[-1].provides <= after.facts


@pytest.mark.parametrize(
    ("order", "data"), [(WITH_DATA, True), (WITHOUT_DATA, False), (MINIMAL[True], True), (MINIMAL[False], False)]
)
@pytest.mark.parametrize("target", target_names())
def test_the_default_orders_are_complete(order, data, target):
    lowering = load_target(target).lower_passes()
    Pipeline(tuple(make_pass(n) for n in (*order, *lowering))).check_order(frozenset())
    if data:
        without = [n for n in (*order, *lowering) if not n.startswith("observe")]
        with pytest.raises(UsageError, match="statistics"):
            Pipeline(tuple(make_pass(n) for n in without)).check_order(frozenset())
