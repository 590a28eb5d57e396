"""What a target's table says about a model, without compiling it: which nodes would not run in integers, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompiler.errors import ModelError, UsageError
from qcompiler.model.load import load_model
from qcompiler.passes import MINIMAL
from qcompiler.pipeline import Pipeline
from qcompiler.plan import CompressionPlan, Precision
from qcompiler.recipe import Recipe, bits_fields
from qcompiler.registry import load_target, make_pass
from qcompiler.runtime.optimized import COMPUTE_OPS, node_macs
from qcompiler.runtime.widths import check_bits
from qcompiler.samples import FLOATS, prepare_samples
from qcompiler.state import Context, State

STORED = "; weights stored in integers"
"""What placement adds to a reason, of which a runtime sees nothing."""
IN_INTEGERS = frozenset({Precision.INTEGER, Precision.MOVE, Precision.DYNAMIC, Precision.BLOCKWISE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A node that would stay in float, and why."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LintResult:
    """What a table says about a model.

    Attributes:
        target: with its profile.
        bits: widths of weights and activations that the table was asked for, such as ``W8A8``.
        summary: what the target is.
        only_a_table: nothing can be run for this target.
        nodes: nodes that compute floats.
        compute_nodes / integer_compute_nodes: convolutions and matrix products, all and those in integers.
        mac_share: share of the multiply-accumulates in integers, 0 to 1; None where shapes leave it open.
        findings: nodes that would stay in float, in graph order.
    """

    target: str
    bits: str
    summary: str
    only_a_table: bool
    nodes: int
    compute_nodes: int
    integer_compute_nodes: int
    mac_share: float | None
    findings: tuple[Finding, ...]


def lint_model(model: Path | str, target_name: str, bits: str = "W8A8") -> LintResult:
    """Return what a target's table says about a float model, as if there were data to calibrate on.

    Args:
        model: the file.
        target_name: the target, with its profile.
        bits: widths of weights and activations. A mean width such as ``W4A8`` is looked up as if every weight had it.

    Raises:
        ModelError: the model cannot be read, or is quantized already.
        UsageError: no target has this name, it takes no such widths, or they are to be found by a search.
    """
    target, recipe, path = load_target(target_name), Recipe(**bits_fields(bits)), Path(model)
    if recipe.allocation == "auto":
        raise UsageError("a table says nothing about --bits auto, which compiling finds; lint with widths such as W4A8")
    check_bits(target, recipe)
    loaded = load_model(path)
    if loaded.facts.already_quantized:
        raise ModelError(f"{path}: the model is already quantized; lint the float model that it was made from")
    names = MINIMAL[True][: MINIMAL[True].index("place") + 1]
    probe = prepare_samples(loaded.model, recipe).probe
    context = Context(target=target, recipe=recipe, calibration=probe)
    start = State(model=loaded.model, plan=CompressionPlan())
    state, _ = Pipeline(tuple(make_pass(name) for name in names), check=False).run(start, context)
    nodes = [n for n in state.model.graph.all_nodes() if any(v.dtype is None or v.dtype in FLOATS for v in n.outputs)]
    left = [n for n in nodes if state.plan.nodes[n.name or ""].precision not in IN_INTEGERS]
    compute = [n for n in nodes if n.op_type in COMPUTE_OPS]
    return LintResult(
        target=target.full_name,
        bits=recipe.bits,
        summary=target.summary,
        only_a_table=not target.runtime_name,
        nodes=len(nodes),
        compute_nodes=len(compute),
        integer_compute_nodes=len(compute) - sum(n.op_type in COMPUTE_OPS for n in left),
        mac_share=_mac_share(compute, left),
        findings=tuple(_finding(n, state) for n in left),
    )


def _mac_share(compute: Sequence[ir.Node], left: Sequence[ir.Node]) -> float | None:
    """Return the share of the compute that is not left in float, None if a shape of it is not known."""
    shapes = [v.shape for n in compute for v in (*n.inputs[:2], *n.outputs[:1]) if v is not None]
    total = sum(map(node_macs, compute))
    if not total or any(s is None or any(not isinstance(d, int) for d in s[1:]) for s in shapes):
        return None
    return 1.0 - sum(node_macs(n) for n in compute if n in left) / total


def _finding(node: ir.Node, state: State) -> Finding:
    entry = state.plan.nodes[node.name or ""]
    return Finding(node=entry.name, op_type=node.op_type, reason=entry.reason.removesuffix(STORED))
