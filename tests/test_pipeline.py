"""The pipeline: order, and what each kind of pass may do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from qcompiler.errors import DataError, QCompileError, UsageError
from qcompiler.model.edit import clone, replace_constant
from qcompiler.pipeline import Pipeline, select
from qcompiler.plan import NodePlan, Precision
from qcompiler.protocols import Pass, PassKind, PassResult
from qcompiler.records import PassReport
from qcompiler.registry import make_pass
from qcompiler.state import Fact, State
from tests.compiling import Fixed, context, planned, samples, start
from tests.models import conv_net, dense_net

NOTHING: frozenset[Fact] = frozenset()


@dataclass(frozen=True)
class Step:
    """A pass that does what a function says."""

    work: object
    kind: PassKind = PassKind.REWRITE
    name: str = "step"
    requires: ClassVar[frozenset[Fact]] = NOTHING
    provides: ClassVar[frozenset[Fact]] = NOTHING
    invalidates: ClassVar[frozenset[Fact]] = NOTHING

    def run(self, state, where):
        return PassResult(self.work(state), PassReport(name=self.name, changed=True))


def run(step, *, data=True, check=True, proto=None) -> State:
    state = start(proto or dense_net())
    probe = samples(state.model, 2) if data else None
    return Pipeline((step,), probe, check).run(state, context(data=probe))[0]


def edited(change, *, copied=True):
    """Return work that changes a model, or a clone of it."""

    def work(state):
        model = clone(state.model) if copied else state.model
        change(model)
        return replace(state, model=model)

    return work


def weight(model):
    return model.graph.initializers["w1"]


def scale_weight(factor):
    def change(model):
        value = weight(model)
        replace_constant(value, (value.const_value.numpy() * factor).astype(np.float32))

    return change


def test_steps_are_passes():
    assert isinstance(Step(None), Pass)


# -- order ------------------------------------------------------------------------------------------------


def test_a_missing_fact_is_refused_before_anything_runs():
    steps = tuple(make_pass(n) for n in ("fold-batch-norm", "calibrate"))
    with pytest.raises(UsageError, match="'calibrate' needs placement, statistics, but at its place there is moments"):
        Pipeline(steps).run(start(conv_net()), context())


def test_an_invalidated_fact_is_gone():
    order = ("place", "fold-batch-norm", "scale-weights")
    with pytest.raises(UsageError, match="'scale-weights' needs placement"):
        Pipeline(tuple(make_pass(n) for n in order)).check_order(NOTHING)


def test_facts_follow_the_passes():
    state = start(conv_net())
    found, reports = Pipeline((make_pass("fold-batch-norm"), make_pass("place"))).run(state, context())
    assert found.facts == {Fact.MOMENTS, Fact.PLACEMENT}
    assert [r.name for r in reports] == ["fold-batch-norm", "place"]
    assert all(r.seconds > 0 for r in reports)


def test_progress_and_results_are_told_step_by_step():
    told, seen = [], []
    where = replace(context(), progress=lambda *args: told.append(args))
    steps = (make_pass("fold-batch-norm"), make_pass("place"))
    Pipeline(steps).run(start(conv_net()), where, lambda step, result: seen.append((step.name, result.state.facts)))
    assert ("fold-batch-norm", 0, 2) in told
    assert ("place", 1, 2) in told
    assert [name for name, _ in seen] == ["fold-batch-norm", "place"]
    assert Fact.PLACEMENT in seen[1][1]


def test_passes_can_be_left_out():
    steps = [make_pass(n) for n in ("fold-batch-norm", "place")]
    assert [p.name for p in select(steps, ["fold-batch-norm"])] == ["place"]
    assert select(steps, []) == tuple(steps)
    with pytest.raises(UsageError, match="observe"):
        select(steps, ["observe"])


# -- contracts -----------------------------------------------------------------------------------------------


def test_an_honest_rewrite_passes():
    def twice_and_half(model):
        scale_weight(2.0)(model)
        scale_weight(0.5)(model)

    run(Step(edited(twice_and_half)))


def test_a_rewrite_that_changes_outputs_is_refused():
    with pytest.raises(QCompileError, match=r"'step' changed output 'y'.*dB"):
        run(Step(edited(scale_weight(1.01))))
    run(Step(edited(scale_weight(1.01))), check=False)


def test_a_rewrite_that_makes_nan_is_refused():
    with pytest.raises(QCompileError, match="changed output 'y'"):
        run(Step(edited(scale_weight(np.nan))))


def test_a_change_that_the_report_denies_is_checked_all_the_same():
    step = Step(edited(scale_weight(1.5)))
    quiet = replace_run(step, lambda result: PassResult(result.state, replace(result.report, changed=False)))
    with pytest.raises(QCompileError, match="changed output"):
        run(quiet)


def replace_run(step, change):
    class Quiet(Step):
        def run(self, state, where):
            return change(super().run(state, where))

    return Quiet(step.work, step.kind)


@pytest.mark.parametrize("kind", list(PassKind))
def test_the_given_model_must_not_be_edited(kind):
    with pytest.raises(QCompileError, match="'step'"):
        run(Step(edited(scale_weight(1.0), copied=False), kind))


def test_a_plan_pass_must_not_replace_the_graph():
    with pytest.raises(QCompileError, match="is a plan pass, but changed the graph"):
        run(Step(edited(lambda model: None), PassKind.PLAN))


def test_a_lower_pass_must_not_change_the_plan():
    def work(state):
        node = NodePlan(name="fc1", op_type="Gemm", precision=Precision.FLOAT)
        return replace(state, plan=state.plan.with_nodes(node))

    with pytest.raises(QCompileError, match="is a lower pass, but changed the plan"):
        run(Step(work, PassKind.LOWER))


def test_an_invalid_graph_is_refused():
    def change(model):
        next(iter(model.graph)).op_type = "Gemmm"

    with pytest.raises(QCompileError, match="'step' made an invalid model"):
        run(Step(edited(change), PassKind.LOWER))


def test_a_graph_that_was_never_valid_may_stay():
    proto = dense_net()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    run(Step(edited(lambda model: None), PassKind.LOWER), proto=proto)


def test_a_graph_that_does_not_run_is_refused():
    def change(model):
        replace_constant(weight(model), np.zeros((3, 3), np.float32))

    with pytest.raises(QCompileError):
        run(Step(edited(change)))


def test_samples_that_the_model_does_not_take_are_the_samples_fault():
    state = start(dense_net())
    wrong = Fixed([{"x": np.zeros((1, 3), np.float32)}])
    with pytest.raises(DataError, match="sample 0"):
        Pipeline((Step(edited(lambda model: None)),), wrong).run(state, context())


def test_a_report_under_another_name_is_refused():
    step = replace_run(Step(lambda s: s), lambda r: PassResult(r.state, replace(r.report, name="other")))
    with pytest.raises(QCompileError, match="returned a report named 'other'"):
        run(step)


def test_large_models_are_not_written_out_for_checks(monkeypatch):
    from qcompiler import pipeline

    monkeypatch.setattr(pipeline, "CHECK_ABOVE_BYTES", 10)
    run(Step(edited(scale_weight(3.0))))


def test_a_plan_that_is_not_lowered_completely_is_refused():
    state, where = planned(dense_net())
    with pytest.raises(QCompileError, match="no pass wrote the weights of node 'fc1'"):
        Pipeline((make_pass("pack-constants"),)).run(state, where)
    lowering = tuple(make_pass(n) for n in where.target.lower_passes())
    found, _ = Pipeline(lowering).run(state, where)
    assert Fact.LOWERED in found.facts
