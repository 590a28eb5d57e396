"""choose-matmuls: the form of every token-wise product, by the rows that it is expected to have and what forms cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import onnx_ir as ir

from qcompiler.blockwise import costs_of, form_of, largest_block, multiplies_matrix, transposed, with_form
from qcompiler.data import Subset
from qcompiler.plan import CompressionPlan, Precision, QuantSpec
from qcompiler.protocols import MatMulCost, MatMulForm, OpRule, PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.runtime.capture import stream
from qcompiler.runtime.latency_db import Conditions, LatencyDatabase, NodeLatency
from qcompiler.runtime.machine import machine_name
from qcompiler.runtime.matmul_forms import FLOAT_FORM, MatMulShape, form_costs
from qcompiler.runtime.sessions import runtime_version
from qcompiler.state import Context, Fact, State

MEASURING_EFFORT = 2
EVEN = 1.05
"""Costs whose ratio is below this are the same: measurements repeat to about so much."""
_UNDONE = frozenset({Fact.PLACEMENT, Fact.RANGES, Fact.WEIGHT_SCALES})
DYNAMIC, STATIC = MatMulForm(Precision.DYNAMIC), MatMulForm(Precision.INTEGER)
TOKEN_RANK = 3
BYTE_BITS = 8
"""Blockwise products and those with run-time grids read activations of so many bits."""

Costs = Mapping[MatMulForm, float]


class _Priced(NamedTuple):
    """A product, the width of its weights, and what the forms that fit it cost of the float product."""

    name: str
    shape: MatMulShape
    bits: int
    costs: Costs


@dataclass(frozen=True, slots=True)
class ChooseMatmuls:
    """Chooses between a grid found at run time, a fixed grid and weights decoded in the kernel, product by product.

    The rows of a product are 1 where tokens come one by one (``--decode``), else those that it has on the first
    sample. What a form costs for so many rows and so large a matrix says the target's table, at the nearest measured
    point; from -O2 on, and where the target is this machine, the forms themselves are timed, interleaved.

    Products stay on grids found at run time unless a blockwise form wins by a margin. Where a fixed grid costs no more,
    which of the two is left to the model: the one that answers better on the acceptance samples.

    Attributes:
        win: share of the cost by which a blockwise form must be below the one that is left.
    """

    name: ClassVar[str] = "choose-matmuls"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = _UNDONE
    win: float = 0.05

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a choice for every token-wise product whose rows are known.

        Raises:
            DataError: the model does not run on the first sample.
        """
        table = costs_of(context.target)
        products = [n for n in state.model.graph if _eligible(n, context)] if table else []
        rows = _rows(state.model, products, context)
        measured = _Measured(context)
        plan, found, skipped = state.plan, list[_Priced](), []
        for node in products:
            name = node.name or ""
            if name not in rows:
                skipped.append(Skip(name, "the number of its rows is not known: give --data or --decode"))
                continue
            shape, bits = MatMulShape(rows[name], *_matrix(node)), _bits(node, context)
            costs = {f: c for f, c in _table_costs(table, shape).items() if _fits(f, node, bits, context)}
            if measured.wanted:
                costs = measured.costs(tuple(costs), shape)
            chosen = self._choice(costs)
            if chosen is not None:
                fitted = replace(chosen, block_size=largest_block(chosen.block_size, shape.inputs))
                plan = with_form(plan, name, fitted)
                found.append(_Priced(name, shape, bits, costs))
        plan, metrics = _settled(replace(state, plan=plan), found, context)
        evidence = "timed on this machine" if measured.wanted else "by the target's table"
        report = PassReport(
            name=self.name,
            changed=plan is not state.plan,
            options={"win": self.win},
            metrics=(Metric("chosen", len(found), "products"), *metrics),
            skipped=tuple(skipped),
            tables=(_table(found, plan, evidence),) if found else (),
        )
        return PassResult(replace(state, plan=plan), report)

    def _choice(self, costs: Costs) -> MatMulForm | None:
        """Return the form to take; None where no form is known to be cheaper than float."""
        best = next((f for f in (DYNAMIC, STATIC) if f in costs), None)
        limit = 1.0 if best is None else min(1.0, costs[best])
        blockwise = [f for f in costs if f.precision is Precision.BLOCKWISE]
        cheapest = min(blockwise, key=lambda f: costs[f], default=None)
        if cheapest is not None and costs[cheapest] < limit * (1 - self.win):
            best = cheapest
        return best


def _settled(state: State, found: Sequence[_Priced], context: Context) -> tuple[CompressionPlan, tuple[Metric, ...]]:
    """Return the plan with fixed grids where they cost no more, if the model answers better so, and by how much."""
    names = [
        p.name
        for p in found
        if form_of(state.plan, p.name) == DYNAMIC and p.costs.get(STATIC, math.inf) <= p.costs[DYNAMIC] * EVEN
    ]
    if not names or context.trial is None:
        return state.plan, ()
    plan = state.plan
    for name in names:
        plan = with_form(plan, name, STATIC)
    levels = [context.trial(replace(state, plan=p, facts=state.facts - _UNDONE)) for p in (state.plan, plan)]
    metrics = (Metric("trial with run-time grids", levels[0], "dB"), Metric("trial with fixed grids", levels[1], "dB"))
    return (plan if levels[1] > levels[0] else state.plan), metrics


def _eligible(node: ir.Node, context: Context) -> bool:
    """Return True for a product of tokens that no rule of the recipe decides about."""
    if not multiplies_matrix(node):
        return False
    weight, data = node.inputs[1], node.inputs[0]
    rule = context.recipe.rule_of([node.name or "", weight.name or "" if weight is not None else ""])
    if rule is not None and (rule.scheme != "auto" or rule.keep_float):
        return False
    tokens = data is not None and data.shape is not None and len(data.shape) >= TOKEN_RANK
    return context.recipe.decode or (node.op_type == "MatMul" and tokens)


def _rows(model: ir.Model, products: Sequence[ir.Node], context: Context) -> dict[str, int]:
    """Return node name -> rows of the left operand, where they are known."""
    names = [n.name or "" for n in products]
    if context.recipe.decode:
        return dict.fromkeys(names, 1)
    read = [v.name or "" for n in products if (v := n.inputs[0]) is not None]
    shapes: dict[str, Sequence[object]] = {}
    if context.calibration is not None and read:
        first = Subset(context.calibration, (0,))
        values = next(stream(model, list(dict.fromkeys(read)), first, threads=context.recipe.threads))
        shapes = {name: array.shape for name, array in values.items()}
    else:
        shapes = {v.name or "": tuple(v.shape) for n in products if (v := n.inputs[0]) is not None and v.shape}
    found = {}
    for name, value in zip(names, read, strict=True):
        sizes = [n for n in shapes.get(value, ("",))[:-1] if isinstance(n, int)]
        if value in shapes and len(sizes) == len(shapes[value]) - 1:
            found[name] = max(math.prod(sizes), 1)
    return found


def _matrix(node: ir.Node) -> tuple[int, int]:
    """Return (inputs, outputs) of a product."""
    tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
    first, second = tensor.shape.numpy() if tensor is not None else (1, 1)
    return (second, first) if transposed(node) else (first, second)


def _bits(node: ir.Node, context: Context) -> int:
    weight = node.inputs[1].name if node.inputs[1] is not None else ""
    rule = context.recipe.rule_of([node.name or "", weight or ""])
    return context.recipe.weight_bits if rule is None or rule.num_bits is None else rule.num_bits


def _fits(form: MatMulForm, node: ir.Node, bits: int, context: Context) -> bool:
    """Return whether a product of weights of so many bits can run in a form."""
    if form.precision is Precision.BLOCKWISE:
        return form.num_bits >= bits and context.recipe.activation_bits == BYTE_BITS
    if form.precision is Precision.INTEGER and context.calibration is None:
        return False
    spec = QuantSpec(num_bits=bits, signed=True, symmetric=True, axis=0)
    legal = isinstance(context.target.legalize(node.op_type, form.precision, spec), OpRule)
    return legal and (form.precision is not Precision.DYNAMIC or context.recipe.activation_bits == BYTE_BITS)


def _table_costs(table: Sequence[MatMulCost], shape: MatMulShape) -> dict[MatMulForm, float]:
    """Return what every form costs at the measured point that is nearest, in octaves of rows and of weights."""
    nearest: dict[MatMulForm, tuple[float, float]] = {}
    for point in table:
        away = abs(math.log2(point.rows / shape.rows)) + abs(math.log2(point.weights / shape.weights))
        if away < nearest.get(point.form, (math.inf, 0.0))[0]:
            nearest[point.form] = (away, point.ratio)
    return {form: ratio for form, (_, ratio) in nearest.items()}


class _Measured:
    """Times forms on this machine; what was timed once is kept, so that the same question gets the same answer."""

    def __init__(self, context: Context) -> None:
        recipe, target = context.recipe, context.target
        here = target.executes_here and target.runtime_name == "onnxruntime"
        self.wanted = here and recipe.effort >= MEASURING_EFFORT and recipe.replay is None
        self._threads = recipe.threads

    def costs(self, forms: Sequence[MatMulForm], shape: MatMulShape) -> dict[MatMulForm, float]:
        """Return the time of forms over that of the float product."""
        conditions = Conditions(self._threads, runtime_version(), machine_name())
        wanted = {form: (_signature(shape), form.describe()) for form in (FLOAT_FORM, *forms)}
        database = LatencyDatabase()
        known = database.read(list(wanted.values()), conditions)
        if len(known) < len(wanted):
            found = form_costs(tuple(wanted), shape, threads=self._threads)
            database.write({wanted[f]: NodeLatency(us, us) for f, us in found.items()}, conditions)
            known = {wanted[f]: NodeLatency(us, us) for f, us in found.items()}
        reference = known[wanted[FLOAT_FORM]].min_us
        return {f: known[wanted[f]].min_us / reference for f in forms if wanted[f] in known}


def _signature(shape: MatMulShape) -> str:
    return f"product of {shape.rows} x {shape.inputs} by {shape.inputs} x {shape.outputs}"


def _table(found: Sequence[_Priced], plan: CompressionPlan, evidence: str) -> Table:
    """Return what the forms of every different product cost, and what was chosen."""
    rows: dict[tuple[str, str], TableRow] = {}
    for product in found:
        best: dict[Precision, float] = {}
        for form, cost in product.costs.items():
            best[form.precision] = min(cost, best.get(form.precision, math.inf))
        values = tuple(best.get(p) for p in (Precision.DYNAMIC, Precision.INTEGER, Precision.BLOCKWISE))
        chosen, name = form_of(plan, product.name), f"{_signature(product.shape)}, {product.bits} bits"
        note = chosen.describe() if chosen is not None else ""
        rows.setdefault((name, note), TableRow(name, values, note))
    columns = ("run-time grid", "fixed grid", "blockwise, best")
    return Table(f"Cost of forms, {evidence}", "of the float product", columns, tuple(rows.values()))
