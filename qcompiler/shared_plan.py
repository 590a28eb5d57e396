"""Whether what was decided for one target is what would be decided for another: then nothing is searched twice."""

from __future__ import annotations

import enum
from dataclasses import replace

from qcompiler.passes import EXACT
from qcompiler.plan import CompressionPlan, Precision, QuantSpec
from qcompiler.protocols import Target
from qcompiler.recipe import Recipe
from qcompiler.records import Verdict
from qcompiler.registry import make_pass
from qcompiler.runtime.emulation.board import boards_for
from qcompiler.runtime.widths import looks_up_levels
from qcompiler.state import Context, State

SEPARATOR = ", "
"""Between the targets of a plan that is for several."""

PLACING_EFFORT = 2


class PlacedBy(enum.Enum):
    """What decides, beside the target's table, which nodes run in integers."""

    TABLE = enum.auto()
    """Nothing else: the effort is low, a plan is replayed, or the target cannot be measured from here."""
    LATENCY = enum.auto()
    """Time on this machine, which is the target."""
    INSTRUCTIONS = enum.auto()
    """Instructions on the emulated board that the target stands for."""


def placed_by(target: Target, recipe: Recipe) -> PlacedBy:
    """Return what decides the placement for a target. A processor that is here is asked before one that is emulated.

    Args:
        target: one target of the compilation.
        recipe: what is asked.
    """
    if recipe.effort < PLACING_EFFORT or recipe.replay is not None:
        return PlacedBy.TABLE
    if target.executes_here and target.runtime_name == "onnxruntime":
        return PlacedBy.LATENCY
    emulated = recipe.verify == "emulate" and boards_for(target.full_name)
    return PlacedBy.INSTRUCTIONS if emulated else PlacedBy.TABLE


Placement = tuple[dict[str, Precision], dict[str, QuantSpec | None]]


def places_alike(decided: State, context: Context, other: Target) -> bool:
    """Return whether another target places the same model in the same way and writes plans by the same passes.

    Tables may differ in rows that the model does not meet. A search decides by the placement and by runs of what
    the lowering passes write, so for such a target it would find the same. What is placed by measurement depends
    on the device and is like nothing else.

    Args:
        decided: the state as it was decided.
        context: of the compilation it was decided in; its target is the one that is compared with.
        other: another target.
    """
    if any(placed_by(t, context.recipe) is not PlacedBy.TABLE for t in (context.target, other)):
        return False
    if _writing(other, decided) != _writing(context.target, decided):
        return False
    few = any(t.levels is not None for t in decided.plan.tensors.values())
    if few and looks_up_levels(other) != looks_up_levels(context.target):
        return False
    return _placement(decided, context) == _placement(decided, replace(context, target=other))


def _writing(target: Target, decided: State) -> list[str]:
    """Return the lowering passes of a target that a search may see in a result: those that can change a value."""
    idle = set(EXACT)
    if not any(n.precision is Precision.BLOCKWISE for n in decided.plan.nodes.values()):
        idle.add("matmul-nbits")
    if not any(t.rows is not None for t in decided.plan.tensors.values()):
        idle.add("pack-embeddings")
    return [name for name in target.lower_passes() if name not in idle]


def with_shared_plan(verdict: Verdict, plan: CompressionPlan) -> Verdict:
    """Return a verdict that notes for which targets its plan was decided, if that is more than one."""
    if SEPARATOR not in plan.target:
        return verdict
    return replace(verdict, notes=(*verdict.notes, f"one search, one plan, several lowerings: {plan.target}"))


def _placement(state: State, context: Context) -> Placement:
    chosen = make_pass("choose-matmuls").run(replace(state, plan=CompressionPlan()), context).state
    placed = make_pass("place").run(chosen, context).state.plan
    return (
        {name: node.precision for name, node in placed.nodes.items()},
        {name: tensor.spec for name, tensor in placed.tensors.items()},
    )
