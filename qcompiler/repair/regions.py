"""What to take back when the gate found a floor missed: the stretch of the network whose float run helps most."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from qcompiler.gate.floors import LATENCY
from qcompiler.plan import NodePlan, Precision, Role
from qcompiler.recipe import MatchRule
from qcompiler.records import LayerDamage, LayerTime, RepairStep, Verdict
from qcompiler.registry import make_pass
from qcompiler.repair.bits import (
    CLEAR_DB,
    below_full,
    deficit_db,
    misses_accuracy,
    more_bits_help,
    other_widths,
    ranked_damage,
    with_actions,
)
from qcompiler.repair.sparsity import less_sparse
from qcompiler.runtime.optimized import COMPUTE_OPS
from qcompiler.state import Context, State

MAX_REPAIRS = 6
"""Tries with other widths, and as many again that take layers back to float."""
STRETCHES = 8
MIN_GAIN_DB = 3.0
MARGIN_DB = 0.5
"""Acceptance samples are few: aim a little above the floor."""
NAME = "repair"
SLOWER = "float where integers are slower"
DAMAGING = "float for the stretch that does most damage"
EVERYWHERE = "float everywhere"
MORE_BITS = "more bits"
FEWER_BITS = "fewer bits"
NO_ROOM = "kept: --max-size leaves no room for more bits"
NO_WIDER = "kept: there are no wider weights to try"
NO_GAIN = "kept: 8-bit weights everywhere gain little"
FEWER_ZEROS = "fewer zeros"
MAX_DENSER = 4
"""Tries with fewer weights pruned; the last leaves nearly none."""


@dataclass
class Repair:
    """Proposes repairs one after the other, and remembers what was tried.

    Attributes:
        context: of the compilation.
        planned: the state as it was decided, before any repair.
        steps: what was tried, in order, for the report.
        reverted: compute nodes that are in float again; their weights stay in integers.
    """

    context: Context
    planned: State
    replan: Callable[[State], State] | None = None
    """Gives the weights of a state with other widths their scales and codes; None never changes widths."""
    steps: list[RepairStep] = field(default_factory=list)
    damages: list[LayerDamage] = field(default_factory=list)
    reverted: frozenset[str] = frozenset()
    tried: set[tuple[int, ...]] = field(default_factory=set)
    """Allocations of bits that the gate has seen."""

    def propose(self, verdict: Verdict, times: Sequence[LayerTime]) -> State | None:
        """Return the state to try next, None if there is nothing left to try.

        Args:
            verdict: what the gate found wrong.
            times: where the time goes, per node.
        """
        denser = self._fewer_zeros(verdict)
        if denser is not None:
            return denser
        wider = self._other_widths(verdict)
        if wider is not None:
            return wider
        left = [n for n in compute_nodes(self.planned) if n not in self.reverted]
        measured = bool(verdict.failure) or any(f.reached is not None for f in verdict.missed)
        if not left or not measured or self._tries(SLOWER, DAMAGING, EVERYWHERE) >= MAX_REPAIRS:
            return None
        if verdict.failure or any(f.unit == "bytes" for f in verdict.missed):
            action, chosen = EVERYWHERE, left
        elif any(f.name == LATENCY for f in verdict.missed):
            action, chosen = SLOWER, self._slower(left, times)
        else:
            action, chosen = DAMAGING, self._damaging(left, deficit_db(verdict))
        reasons = _reasons(verdict)
        if not chosen:
            return None
        outcome = verdict.failure or "; ".join(reasons) or f"{LATENCY} above its limit"
        if action == DAMAGING:
            self.damages = [replace(d, action="float") if d.name in chosen else d for d in self.damages]
        self.steps.append(RepairStep(action=action, layers=tuple(chosen), outcome=outcome))
        self.reverted |= frozenset(chosen)
        return reverted(self.planned, self.context, self.reverted, NAME)

    def _fewer_zeros(self, verdict: Verdict) -> State | None:
        """Return the state with fewer weights pruned, None where that is no cure: zeros do the most damage."""
        tries = self._tries(FEWER_ZEROS)
        if self.replan is None or verdict.failure or tries >= MAX_DENSER:
            return None
        found = less_sparse(self.planned, verdict, self.context, tries)
        if found is None:
            return None
        self.planned = self.replan(found.state)
        action = f"{FEWER_ZEROS} ({100 * found.before:.1f} -> {100 * found.after:.1f} % of the weights)"
        self.steps.append(RepairStep(action=action, layers=found.changed, outcome="; ".join(_reasons(verdict))))
        return reverted(self.planned, self.context, self.reverted, NAME)

    def _other_widths(self, verdict: Verdict) -> State | None:
        """Return the state with other widths of weights, None where that is no cure: bits come before float."""
        raised, lowered = self._tries(MORE_BITS), self._tries(FEWER_BITS)
        if self.replan is None or verdict.failure or raised + lowered >= MAX_REPAIRS:
            return None
        if self.planned.bit_search is not None:
            self.tried.add(self.planned.bit_search.chosen.bits)
        found = other_widths(self.planned, verdict, self.context, raised, self.tried)
        if found is None:
            if misses_accuracy(verdict) and not self.damages:
                self._rank(NO_ROOM if self.context.recipe.floors.max_size_bytes is not None else NO_WIDER)
            return None
        if found.more:
            helps = more_bits_help(self.planned, self.context)
            if not self.damages or not helps:
                self._rank("" if helps else NO_GAIN)
            if not helps:
                return None
        self.planned = self.replan(found.state)
        self.damages = with_actions(self.damages, self.planned)
        action = f"{MORE_BITS if found.more else FEWER_BITS} {found.widths}"
        self.steps.append(RepairStep(action=action, layers=found.changed, outcome="; ".join(_reasons(verdict))))
        return reverted(self.planned, self.context, self.reverted, NAME)

    def _rank(self, action: str) -> None:
        """Measure which layers do the damage, and say what is done about all of them alike."""
        self.damages = with_actions(ranked_damage(self.planned, self.context), self.planned, action)

    def _tries(self, *actions: str) -> int:
        """Return how often something was tried."""
        return sum(step.action.startswith(actions) for step in self.steps)

    def _slower(self, left: list[str], times: Sequence[LayerTime]) -> list[str]:
        """Return the nodes that the profile shows slower in integers; all of them at the second attempt."""
        slower = [
            t.name
            for t in times
            if t.name in left and t.before_us is not None and t.after_us is not None and t.after_us > t.before_us
        ]
        again = any(step.action == SLOWER for step in self.steps)
        return left if again or not slower else slower

    def _damaging(self, left: list[str], deficit_db: float) -> list[str]:
        """Return the stretches whose return to float closes the gap, as few and as short as trials find."""
        trial = self.context.trial
        if trial is None:
            return left if self._tries(DAMAGING) else left[: max(1, len(left) // 2)]

        def level(nodes: Sequence[str]) -> float:
            return trial(reverted(self.planned, self.context, self.reverted | frozenset(nodes), NAME))

        start = level(())
        if below_full(self.planned) and level(left) - start < CLEAR_DB:
            return []  # the rounding of the weights does the damage, and they keep it in float
        goal = start + max(deficit_db + MARGIN_DB, MIN_GAIN_DB)
        stretches = [list(s) for s in np.array_split(np.asarray(left, dtype=object), min(STRETCHES, len(left)))]
        gains: dict[int, float] = {}
        for index, stretch in enumerate(stretches):
            gains[index] = level(stretch)
            if gains[index] >= goal:
                return _shortened(stretch, level, goal)
        chosen: list[str] = []
        reached = -np.inf
        for index in sorted(gains, key=lambda i: -gains[i]):
            chosen += stretches[index]
            reached = level(chosen)
            if reached >= goal:
                break
        return _shortened(chosen, level, min(goal, reached))


def _shortened(chosen: list[str], level: Callable[[Sequence[str]], float], goal: float) -> list[str]:
    """Return a shorter list that still reaches the goal: halves are dropped as long as that holds."""
    while len(chosen) > 1:
        half = len(chosen) // 2
        if level(chosen[:half]) >= goal:
            chosen = chosen[:half]
        elif level(chosen[half:]) >= goal:
            chosen = chosen[half:]
        else:
            break
    return chosen


def _reasons(verdict: Verdict) -> list[str]:
    """Return what the missed floors reached, as far as it is the same in every run."""
    found = [(f, f.reached) for f in verdict.missed if f.reached is not None and _lasting(f.name)]
    return [f"{f.name} is {n:,.0f} bytes" if f.unit == "bytes" else f"{f.name} is {n:.4g}" for f, n in found]


def _lasting(name: str) -> bool:
    """Return True for a figure that is the same in every run, so that the report may hold it."""
    return name != LATENCY


def compute_nodes(state: State) -> list[str]:
    """Return the compute nodes that run in integers, in graph order."""
    kinds = (Precision.INTEGER, Precision.DYNAMIC, Precision.BLOCKWISE)
    plans = state.plan.nodes
    return [
        n.name or ""
        for n in state.model.graph
        if n.op_type in COMPUTE_OPS and (n.name or "") in plans and plans[n.name or ""].precision in kinds
    ]


def reverted(state: State, context: Context, nodes: frozenset[str], by: str) -> State:
    """Return the state with some nodes back in float; the grids of everything else are kept.

    Args:
        state: a completely planned state; nodes that were reverted before stay in float.
        context: of the compilation.
        nodes: nodes to revert; their weights stay in integers.
        by: who decides, for the report and for a replay; one of ``REASONS``.
    """
    if not nodes:
        return state
    before = {n.name: n for n in state.plan.nodes.values() if _is_reverted(n)}
    names = sorted(nodes | before.keys())
    rules = tuple(MatchRule(pattern=f"^{re.escape(n)}$", scheme="weight_only") for n in names)
    recipe = replace(context.recipe, rules=(*context.recipe.rules, *rules))
    # Without calibration samples the pass goes by what was observed: what never was stays in float.
    calmer = replace(context, recipe=recipe, calibration=None)
    placed = make_pass("place").run(state, calmer).state.plan
    kept = {k: state.plan.tensors.get(k, t) for k, t in placed.tensors.items()}
    kept |= {k: t for k, t in state.plan.tensors.items() if t.role is Role.BIAS}
    why = {n: replace(placed.nodes[n], reason=REASONS[by], decided_by=("place", by)) for n in nodes}
    marked = {n: replace(placed.nodes[n], reason=d.reason, decided_by=d.decided_by) for n, d in before.items()}
    plan = replace(placed, tensors=kept, choices=state.plan.choices).with_nodes(*why.values(), *marked.values())
    return replace(state, plan=plan.with_choice(f"kept in float by {by}", ", ".join(sorted(nodes))))


def pinned_to_integers(model: ir.Model, rules: Sequence[MatchRule]) -> frozenset[str]:
    """Return the nodes for which a rule of the recipe asks for integers, by ``scheme`` "static" or "dynamic"."""
    found = set()
    for node in model.graph:
        names = [node.name or "", *(v.name or "" for v in node.inputs if v is not None and v.is_initializer())]
        matching = [r for r in rules if any(re.search(r.pattern, name) for name in names)]
        if matching and matching[-1].scheme in ("static", "dynamic"):
            found.add(node.name or "")
    return frozenset(found)


REASONS = {
    "repair": "kept in float by repair, so that a floor holds",
    "measured-placement": "kept in float: measured to be faster there",
    "counted-placement": "kept in float: fewer instructions there (emulated)",
}


def _is_reverted(node: NodePlan) -> bool:
    return any(by in REASONS for by in node.decided_by)
