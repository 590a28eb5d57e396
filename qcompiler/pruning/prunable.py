"""Weights that may be pruned, and by which method: what the layer is, what is known of it, and what fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.errors import UsageError
from qcompiler.layer_problems import PlannedWeight, planned_weights, weight_users
from qcompiler.mixed_precision.widths import MULTIPLIED
from qcompiler.plan import Role, TensorPlan
from qcompiler.quant.pruning import METHODS, method_cost
from qcompiler.records import Skip
from qcompiler.state import Context, State

WIDTHS = range(2, 9)
"""Widths of codes that have a 0; a single bit has none."""
MEMORY = 4 << 30
"""What one layer may take while it is pruned, where the recipe sets no limit."""
ARRAYS, SQUARES = 12, 5
"""Arrays of the weight's and of the Gram matrix' size that a second-order method holds at once, in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Prunable:
    """A weight that may be pruned.

    Attributes:
        weight: with its rows and, for second-order methods, the layout of its inputs.
        method: of ``METHODS``.
        note: why it is no better one, or "".
        fixed: the sparsity that a rule prescribes, or None.
    """

    weight: PlannedWeight
    method: str
    note: str
    fixed: float | None

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.entry.name

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that multiply by it."""
        return tuple(node for node, _ in self.weight.uses)

    @property
    def second_order(self) -> bool:
        """True if the moments of its inputs decide."""
        return self.method != "magnitude"


def prunable(
    state: State, context: Context, methods: Sequence[str], limit: float
) -> tuple[list[Prunable], tuple[Skip, ...]]:
    """Return the weights of Conv, Gemm and MatMul that may be pruned, in graph order, and those that may not.

    Args:
        state: a state with scaled weights.
        context: of the compilation.
        methods: names in ``METHODS`` that are wanted, best last.
        limit: multiply-accumulates that a method may take on one weight.
    """
    users = weight_users(state.model)
    room = context.recipe.max_memory_bytes or MEMORY
    fitting, skipped = [], []
    for name, uses in users.items():
        entry = state.plan.tensors.get(name)
        if entry is None or entry.role is not Role.WEIGHT or entry.spec is None:
            continue
        multiplied = all(i == 1 and n.op_type in MULTIPLIED for n, i in uses)
        value = uses[0][0].inputs[uses[0][1]]
        size = value.const_value.size if value is not None and value.const_value is not None else 0
        refusal = _refusal(entry, size, room, multiplied=multiplied)
        if refusal:
            skipped.append(Skip(name, refusal))
        else:
            fitting.append(name)
    found = planned_weights(state, WIDTHS, fitting)
    return [_with_method(w, context, methods, limit, room) for w in found], tuple(skipped)


def _refusal(entry: TensorPlan, size: int, room: int, *, multiplied: bool) -> str:
    """Return why a weight is not pruned at all, or ""."""
    if not multiplied:
        return "left dense: only weights of Conv, Gemm and MatMul are pruned"
    if entry.spec is not None and entry.spec.num_bits not in WIDTHS:
        return "left dense: codes of one bit have no 0"
    if entry.spec is not None and entry.spec.block_size is not None:
        return "left dense: it has a scale for every block"
    if size < 2:
        return "left dense: it is a single number"
    if 8 * 3 * size > room:
        return f"left dense: ranking {size:,} weights takes {_gigabytes(8 * 3 * size)} of memory; see --max-memory"
    return ""


def _with_method(weight: PlannedWeight, context: Context, methods: Sequence[str], limit: float, room: int) -> Prunable:
    """Return a weight with the best method that its operator, the samples, the time and the memory allow."""
    fixed = _fixed(weight, context)
    layout = weight.layout
    if list(methods) == ["magnitude"]:
        return Prunable(weight, "magnitude", "", fixed)
    if layout is None or context.calibration is None:
        return Prunable(weight, "magnitude", weight.refusal or "there are no samples", fixed)
    needed = 8 * (ARRAYS * weight.array.size + SQUARES * layout.groups * layout.inputs**2)
    if needed > room:
        return Prunable(weight, "magnitude", f"second order takes {_gigabytes(needed)} of memory", fixed)
    shape = (layout.groups, weight.array.size // (layout.groups * layout.inputs), layout.inputs)
    able = [m for m in METHODS if m in methods and method_cost(m, shape) <= limit]
    best = able[-1] if able else "magnitude"
    wanted = [m for m in METHODS if m in methods][-1]
    return Prunable(weight, best, "" if best == wanted else f"the layer is too large for {wanted}", fixed)


def _fixed(weight: PlannedWeight, context: Context) -> float | None:
    """Return the sparsity that the last rule with one prescribes for the weight or a layer that reads it."""
    rules = [context.recipe.rule_of([node.name or "", weight.entry.name]) for node, _ in weight.uses]
    return next((r.sparsity for r in rules if r is not None and r.sparsity is not None), None)


def check_methods(names: Sequence[str]) -> None:
    """Check the names of methods.

    Raises:
        UsageError: one is unknown.
    """
    for name in names:
        if name not in METHODS:
            raise UsageError(f"prune: method {name!r} is none of {', '.join(METHODS)}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
