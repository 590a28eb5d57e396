"""Whether what was decided for one target is what would be decided for another: then nothing is searched twice."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.passes import EXACT
from qcompiler.plan import CompressionPlan, Precision, QuantSpec
from qcompiler.protocols import Target
from qcompiler.records import Verdict
from qcompiler.registry import make_pass
from qcompiler.runtime.widths import looks_up_levels
from qcompiler.state import Context, State

SEPARATOR = ", "
"""Between the targets of a plan that is for several."""

Placement = tuple[dict[str, Precision], dict[str, QuantSpec | None]]


def places_alike(decided: State, context: Context, other: Target) -> bool:
    """Return whether another target places the same model in the same way and writes plans by the same passes.

    Tables may differ in rows that the model does not meet. A search decides by the placement and by runs of what
    the lowering passes write, so for such a target it would find the same.

    Args:
        decided: the state as it was decided.
        context: of the compilation it was decided in; its target is the one that is compared with.
        other: another target.
    """
    if _writing(other) != _writing(context.target):
        return False
    few = any(t.levels is not None for t in decided.plan.tensors.values())
    if few and looks_up_levels(other) != looks_up_levels(context.target):
        return False
    return _placement(decided, context) == _placement(decided, replace(context, target=other))


def _writing(target: Target) -> list[str]:
    """Return the lowering passes of a target that a search may see in a result: those that can change a value."""
    return [name for name in target.lower_passes() if name not in EXACT]


def with_shared_plan(verdict: Verdict, plan: CompressionPlan) -> Verdict:
    """Return a verdict that notes for which targets its plan was decided, if that is more than one."""
    if SEPARATOR not in plan.target:
        return verdict
    return replace(verdict, notes=(*verdict.notes, f"one search, one plan, several lowerings: {plan.target}"))


def _placement(state: State, context: Context) -> Placement:
    placed = make_pass("place").run(replace(state, plan=CompressionPlan()), context).state.plan
    return (
        {name: node.precision for name, node in placed.nodes.items()},
        {name: tensor.spec for name, tensor in placed.tensors.items()},
    )
