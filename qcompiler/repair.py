"""What to take back when the gate found a floor missed: the most damaging layers first, at most six times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from qcompiler.plan import Precision
from qcompiler.recipe import MatchRule
from qcompiler.records import LayerTime, RepairStep, Verdict
from qcompiler.runtime.optimized import COMPUTE_OPS
from qcompiler.state import State

MAX_REPAIRS = 6
MIN_TIME_US = 1.0


@dataclass
class Repair:
    """Proposes repairs one after the other, and remembers what was tried.

    Attributes:
        steps: what was tried, in order, for the report.
        reverted: nodes that compute in float again; their weights stay in integers.
    """

    steps: list[RepairStep] = field(default_factory=list)
    reverted: frozenset[str] = frozenset()

    def propose(
        self, verdict: Verdict, state: State, levels: Mapping[str, float], times: tuple[LayerTime, ...]
    ) -> tuple[str, ...]:
        """Return the nodes to revert next; empty if there is nothing left to try.

        Args:
            verdict: what the gate found.
            state: the planned state that was lowered.
            levels: SQNR in dB of every quantized value.
            times: where the time goes, per original node.
        """
        left = [n for n in _integer_nodes(state) if n not in self.reverted]
        if not left or len(self.steps) >= MAX_REPAIRS:
            return ()
        if verdict.failure or any(f.unit == "bytes" for f in verdict.missed):
            return tuple(left)
        if any(f.name == "latency ratio" for f in verdict.missed):
            return self._slower(left, times)
        ranked = sorted(left, key=lambda n: -damage(state, levels).get(n, 0.0))
        # Each attempt takes back twice as many layers as the one before; the last one takes them all.
        count = max(1, len(ranked) // 2 ** max(MAX_REPAIRS - 2 - len(self.steps), 0))
        return tuple(ranked[:count])

    def _slower(self, left: list[str], times: tuple[LayerTime, ...]) -> tuple[str, ...]:
        if any(step.action == "float where integers are slower" for step in self.steps):
            return tuple(left)
        slower = [
            t.name
            for t in times
            if t.name in left
            and t.before_us is not None
            and t.after_us is not None
            and t.after_us > max(t.before_us, MIN_TIME_US)
        ]
        return tuple(slower) or tuple(left)

    def record(self, verdict: Verdict, nodes: tuple[str, ...]) -> None:
        """Remember a step that is about to be tried."""
        reasons = [f"{f.name}: {f.reached:.4g}, {f.direction} {f.limit:.4g}" for f in verdict.missed if f.reached is not None]
        slow = any(f.name == "latency ratio" for f in verdict.missed)
        action = "float where integers are slower" if slow else "float for the most damaging layers"
        if verdict.failure:
            action, reasons = "float everywhere", [verdict.failure]
        self.steps.append(RepairStep(action=action, layers=nodes, outcome="; ".join(reasons)))
        self.reverted |= frozenset(nodes)


def revert_rules(nodes: frozenset[str]) -> tuple[MatchRule, ...]:
    """Return recipe rules that keep nodes in float and their weights in integers."""
    return tuple(MatchRule(pattern=f"^{re.escape(n)}$", scheme="weight_only") for n in sorted(nodes))


def damage(state: State, levels: Mapping[str, float]) -> dict[str, float]:
    """Return, per integer compute node, the error-to-signal ratio that it adds to what it got."""
    found: dict[str, float] = {}
    for node in state.model.graph:
        name = node.name or ""
        if node.op_type not in COMPUTE_OPS or name not in _integer_nodes(state):
            continue
        tail = node.outputs[0]
        for use in tail.uses():
            if use.node.op_type in ("Relu", "Clip") and tail.name not in levels:
                tail = use.node.outputs[0]
                break
        source = node.inputs[0].name if node.inputs[0] is not None else ""
        after, before = _ratio(levels.get(tail.name or "")), _ratio(levels.get(source or ""))
        found[name] = max(after - before, 0.0)
    return found


def _ratio(level: float | None) -> float:
    return 0.0 if level is None else float(10.0 ** (-level / 10.0))


def _integer_nodes(state: State) -> tuple[str, ...]:
    kinds = (Precision.INTEGER, Precision.DYNAMIC)
    return tuple(n.name for n in state.plan.nodes.values() if n.precision in kinds and n.op_type in COMPUTE_OPS)
