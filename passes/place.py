"""place: decide for every node whether it runs in integers on this target, and which values get a grid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from qcompiler.blockwise import form_of
from qcompiler.errors import UsageError
from qcompiler.model.bounds import clip_limits
from qcompiler.model.convert import MIN_OPSET
from qcompiler.model.weights import TOO_SMALL, channel_axis_of, saved_bytes, weight_operands
from qcompiler.plan import CompressionPlan, NodePlan, Precision, QuantSpec, Role, TensorPlan
from qcompiler.protocols import OpRule, PassKind, PassResult, Refusal, Target
from qcompiler.quant.histogram import TensorStatistics
from qcompiler.recipe import MatchRule, Recipe
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.runtime.ort_needs import unmet_need
from qcompiler.runtime.widths import check_bits, unfit_activations
from qcompiler.state import Context, Fact, State

COMPUTE = frozenset({"Conv", "Gemm", "MatMul"})
FUSED = frozenset({"Relu", "Clip"})
INTEGER = frozenset({Precision.INTEGER, Precision.MOVE})
RUNS = frozenset({Precision.INTEGER, Precision.DYNAMIC, Precision.BLOCKWISE})
"""Precisions in which a product reads codes of its weight."""
RUN_TIME_BITS = 8
"""Width of the grids that DynamicQuantizeLinear makes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Chooses a precision per node from the target's table, and plans the grids that this needs.

    Compute nodes (Conv, Gemm, MatMul with constant weights) run in integers wherever the table allows it.
    Other nodes join only between compute nodes, where they spare a trip to float and back. What cannot run
    in integers still has its weights stored in integers where that makes the file smaller.
    """

    name: ClassVar[str] = "place"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.RANGES, Fact.WEIGHT_SCALES})

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a NodePlan for every node and empty TensorPlans for what needs a scale.

        Raises:
            UsageError: the recipe asks for widths that the target does not take, or has a rule that names nothing.
        """
        check_bits(context.target, context.recipe)
        known = None if context.calibration is not None else state.statistics
        placer = _Placer(state, context.target, context.recipe, known)
        placer.decide()
        kept = {k: t for k, t in state.plan.tensors.items() if t.role is Role.FACTORS}
        plan = placer.plan(replace(state.plan, target=context.target.full_name, nodes={}, tensors=kept))
        counts = {p: sum(n.precision is p for n in plan.nodes.values()) for p in Precision}
        report = PassReport(
            name=self.name,
            changed=True,
            metrics=tuple(Metric(str(p), count, "nodes") for p, count in counts.items()),
            skipped=tuple(
                Skip(n.name, n.reason) for n in plan.nodes.values() if n.precision is Precision.FLOAT and n.reason
            )
            + tuple(placer.skipped),
        )
        return PassResult(replace(state, plan=plan), report)


@dataclass(slots=True)
class _Choice:
    precision: Precision
    reason: str
    rule: OpRule | None = None
    fused: bool = False


class _Placer:
    def __init__(
        self,
        state: State,
        target: Target,
        recipe: Recipe,
        known: Mapping[str, TensorStatistics] | None,
    ) -> None:
        model = state.model
        self.model, self.target, self.known, self.chosen = model, target, known, state.plan
        self.recipe, self.weight_bits = recipe, recipe.weight_bits
        self.activations = QuantSpec(num_bits=recipe.activation_bits, signed=False)
        self.nodes = list(model.graph)
        self.opset = model.opset_imports.get("", MIN_OPSET)
        self.choices: dict[ir.Node, _Choice] = {}
        self.skipped: list[Skip] = []

    def decide(self) -> None:
        """Fill ``choices`` for the nodes of the main graph."""
        self._refuse_idle_rules()
        for node in self.nodes:
            self.choices[node] = self._first_choice(node)
        demotions = (self._demote_without_ranges, self._demote_shared, self._demote_light, self._demote_fused)
        while sum(demote() for demote in demotions):
            pass

    def _refuse_idle_rules(self) -> None:
        names = {v.name or "" for g in self.model.graphs() for v in g.initializers.values()}
        names |= {n.name or "" for n in self.model.graph.all_nodes()}
        for rule in self.recipe.rules:
            if not any(re.search(rule.pattern, name) for name in names):
                raise UsageError(
                    f'[match."{rule.pattern}"] matches no node and no constant of the model; '
                    "'qcompile MODEL --dry-run' lists the names"
                )

    # -- first choice, node by node ------------------------------------------------------------

    def _first_choice(self, node: ir.Node) -> _Choice:
        rule = self._recipe_rule(node)
        if rule is not None and rule.keep_float:
            return _Choice(Precision.FLOAT, f'kept in float by [match."{rule.pattern}"]')
        if rule is not None and rule.scheme == "weight_only":
            return _Choice(Precision.FLOAT, f'weights only, by [match."{rule.pattern}"]')
        if node.domain not in ("", "ai.onnx"):
            return _Choice(Precision.FLOAT, f"operator of domain '{node.domain}' is left alone")
        if self.opset < MIN_OPSET:
            return _Choice(Precision.FLOAT, f"opset {self.opset} has no grids per channel, {MIN_OPSET} has")
        if node.op_type in FUSED:
            return self._fused_choice(node)
        if node.op_type in COMPUTE:
            return self._compute_choice(node, rule)
        found = self.target.legalize(node.op_type, Precision.INTEGER, None)
        if isinstance(found, Refusal):
            return _Choice(Precision.FLOAT, found.reason)
        unmet = unmet_need(node, found) or unfit_activations(found, self.activations)
        if unmet:
            return _Choice(Precision.FLOAT, unmet)
        return _Choice(found.precision, "between integer nodes", found)

    def _compute_choice(self, node: ir.Node, rule: MatchRule | None) -> _Choice:
        if 1 not in weight_operands(node):
            return _Choice(Precision.FLOAT, "both operands are computed at run time")
        wanted = self._wanted(node, rule)
        if wanted is Precision.BLOCKWISE:
            return _Choice(Precision.BLOCKWISE, "chosen for its cost: weights are decoded in the kernel")
        if wanted is Precision.DYNAMIC and self.activations.num_bits != RUN_TIME_BITS:
            return _Choice(Precision.FLOAT, f"activations with a scale found at run time have {RUN_TIME_BITS} bits")
        found = self.target.legalize(node.op_type, wanted, self._weight_grid(node, 1))
        if isinstance(found, Refusal):
            return _Choice(Precision.FLOAT, found.reason)
        unmet = unmet_need(node, found) or unfit_activations(found, self.activations)
        if unmet:
            return _Choice(Precision.FLOAT, unmet)
        if wanted is Precision.DYNAMIC:
            return _Choice(Precision.DYNAMIC, "token-wise MatMul: activations get their scale at run time", found)
        return _Choice(Precision.INTEGER, "integer kernel of the target", found)

    def _wanted(self, node: ir.Node, rule: MatchRule | None) -> Precision:
        if rule is not None and rule.scheme in ("static", "dynamic"):
            return Precision.DYNAMIC if rule.scheme == "dynamic" else Precision.INTEGER
        form = form_of(self.chosen, node.name or "")
        if form is not None and form.precision is not Precision.DYNAMIC:
            return form.precision
        data, weight = node.inputs[0], node.inputs[1]
        tokens = data is not None and (data.shape is None or len(data.shape) >= 3)
        matrix = weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2
        plain = node.op_type == "MatMul" and tokens and matrix
        return Precision.DYNAMIC if plain and self._dynamic_runs(node) else Precision.INTEGER

    def _fused_choice(self, node: ir.Node) -> _Choice:
        producer = _producer(node)
        value = node.inputs[0]
        if producer is None or value is None or self.choices[producer].precision is not Precision.INTEGER:
            return _Choice(Precision.FLOAT, "its input is not computed in integers")
        if self.choices[producer].fused or len(value.uses()) > 1 or value.is_graph_output():
            return _Choice(Precision.FLOAT, "the value before it is used elsewhere too")
        if any(v is not None and v.const_value is None for v in node.inputs[1:]):
            return _Choice(Precision.FLOAT, "its limits are computed at run time")
        if node.op_type == "Clip" and not clip_limits(node)[0] <= 0.0 <= clip_limits(node)[1]:
            return _Choice(Precision.FLOAT, "its limits leave out 0, which every grid holds")
        return _Choice(Precision.INTEGER, f"fused into {producer.name}", self.choices[producer].rule, fused=True)

    def _recipe_rule(self, node: ir.Node) -> MatchRule | None:
        constants = [v.name or "" for v in node.inputs if v is not None and v.is_initializer()]
        return self.recipe.rule_of([node.name or "", *constants])

    # -- demotions, repeated until nothing changes -----------------------------------------------

    def _demote_fused(self) -> bool:
        changed = False
        for node in self.nodes:
            choice = self.choices[node]
            producer = _producer(node) if choice.fused else None
            if choice.fused and (producer is None or self.choices[producer].precision is not Precision.INTEGER):
                self.choices[node] = _Choice(Precision.FLOAT, "its input is not computed in integers")
                changed = True
        return changed

    def _demote_shared(self) -> bool:
        """Keep in integers only those readers of a shared weight that need the grid of its first reader."""
        changed, axes = False, dict[ir.Value, int | None]()
        for node in self.nodes:
            runs = node.op_type in COMPUTE and self.choices[node].precision in RUNS
            weight = node.inputs[1] if runs else None
            if weight is not None and axes.setdefault(weight, axis := channel_axis_of(node, 1)) != axis:
                reason = "it shares its weights with a layer whose channels lie along another axis"
                self.choices[node] = _Choice(Precision.FLOAT, reason)
                changed = True
        return changed

    def _demote_light(self) -> bool:
        changed, reach = False, self._reaches_compute()
        for node in self.nodes:
            choice = self.choices[node]
            if choice.precision not in INTEGER or choice.fused or self._is_compute(node):
                continue
            reason = ""
            if not all(self._integer_source(v) for v in _data_inputs(node)):
                reason = "an input is not computed in integers"
            elif node not in reach:
                reason = "no integer compute follows; float keeps its precision"
            if reason:
                self.choices[node] = _Choice(Precision.FLOAT, reason)
                changed = True
        return changed

    def _demote_without_ranges(self) -> bool:
        if self.known is None:
            return False
        changed = False
        for node in self.nodes:
            choice = self.choices[node]
            if choice.precision not in INTEGER:
                continue
            missing = [v for v in self._values_of(node) if v.name not in self.known]
            if missing:
                reason = "the range of what it reads is unknown"
                precision = Precision.FLOAT
                if node.op_type == "MatMul" and not choice.fused and self._dynamic_runs(node):
                    precision = Precision.DYNAMIC
                    reason += "; activations get their scale at run time"
                self.choices[node] = _Choice(precision, reason, choice.rule)
                changed = True
        return changed

    def _dynamic_runs(self, node: ir.Node) -> bool:
        found = self.target.legalize(node.op_type, Precision.DYNAMIC, self._weight_grid(node, 1))
        return isinstance(found, OpRule) and self.activations.num_bits == RUN_TIME_BITS

    def _weight_grid(self, node: ir.Node, index: int) -> QuantSpec:
        rule = self._recipe_rule(node)
        bits = self.weight_bits if rule is None or rule.num_bits is None else rule.num_bits
        form = form_of(self.chosen, node.name or "")
        blocks = form.block_size if form is not None and index == 1 else 0
        axis = channel_axis_of(node, index)
        return QuantSpec(num_bits=bits, signed=True, symmetric=True, axis=axis, block_size=blocks or None)

    def _reaches_compute(self) -> set[ir.Node]:
        reach: set[ir.Node] = set()
        for node in reversed(self.nodes):
            for value in node.outputs:
                for consumer, _ in value.uses():
                    choice = self.choices.get(consumer)
                    if choice is None or choice.precision not in INTEGER:
                        continue
                    if self._is_compute(consumer) or consumer in reach:
                        reach.add(node)
        return reach

    def _is_compute(self, node: ir.Node) -> bool:
        return node.op_type in COMPUTE and self.choices[node].precision is Precision.INTEGER

    def _integer_source(self, value: ir.Value) -> bool:
        producer = value.producer()
        choice = self.choices.get(producer) if producer is not None else None
        return choice is not None and choice.precision in INTEGER

    # -- the values that need a grid ---------------------------------------------------------------

    def _tail(self, node: ir.Node) -> ir.Value:
        """Return the output that carries the grid: behind the fused activation where there is one."""
        value = node.outputs[0]
        for consumer, _ in value.uses():
            if consumer in self.choices and self.choices[consumer].fused:
                return consumer.outputs[0]
        return value

    def _values_of(self, node: ir.Node) -> list[ir.Value]:
        """Return the values that must be quantized for a node to run in integers."""
        choice = self.choices[node]
        if choice.fused:
            return []
        values = [node.inputs[0]] if self._is_compute(node) else _data_inputs(node)
        found = [v for v in values if v is not None and v.const_value is None]
        tail = self._tail(node)
        wanted = choice.rule is not None and choice.rule.output
        if wanted or any(self.choices[c].precision in INTEGER for c, _ in tail.uses() if c in self.choices):
            found.append(tail)
        return found

    # -- the plan ------------------------------------------------------------------------------------

    def plan(self, plan: CompressionPlan) -> CompressionPlan:
        """Return the plan with an entry for every node, and for every tensor that is to get a scale."""
        tensors: dict[str, TensorPlan] = {}
        nodes: list[NodePlan] = []
        for node in ir.traversal.RecursiveGraphIterator(self.model.graph):
            choice = self.choices.get(node) or _Choice(Precision.FLOAT, "inside a subgraph")
            weights = self._plan_weights(node, choice)
            for entry in weights:
                first = tensors.setdefault(entry.name, entry)
                if first.spec == entry.spec:
                    continue
                if choice.precision is Precision.FLOAT:  # it decodes whatever grid there is
                    self.skipped.append(Skip(entry.name, f"shared: '{node.name}' takes the grid of another layer"))
                else:
                    tensors[entry.name] = entry
            if choice.precision is Precision.FLOAT and weights:
                why = choice.reason + "; weights stored in integers"
                choice = replace(choice, precision=Precision.WEIGHT_ONLY, reason=why)
            if choice.precision in INTEGER:
                for value in self._values_of(node):
                    tensors[value.name or ""] = self._activation(value)
            nodes.append(
                NodePlan(
                    name=node.name or "",
                    op_type=node.op_type,
                    precision=choice.precision,
                    reason=choice.reason,
                    decided_by=("place",),
                )
            )
        return plan.with_nodes(*nodes).with_tensors(*tensors.values())

    def _activation(self, value: ir.Value) -> TensorPlan:
        return TensorPlan(name=value.name or "", role=Role.ACTIVATION, spec=self.activations, decided_by=("place",))

    def _plan_weights(self, node: ir.Node, choice: _Choice) -> list[TensorPlan]:
        kept = self._recipe_rule(node)
        if kept is not None and kept.keep_float:
            return []
        runs = choice.precision in RUNS and node.op_type in COMPUTE
        found = []
        for index in (1,) if runs else weight_operands(node):
            value = node.inputs[index]
            if value is None:
                continue
            spec = self._weight_grid(node, index)
            if not runs and saved_bytes(value, spec.axis) <= 0:
                self.skipped.append(Skip(value.name or "", TOO_SMALL))
                continue
            found.append(TensorPlan(name=value.name or "", role=Role.WEIGHT, spec=spec, decided_by=("place",)))
        return found


def _producer(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0] if node.inputs else None
    return None if value is None else value.producer()


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs that carry data: the first one, or all of an n-ary operator."""
    many = node.op_type in ("Add", "Mul", "Concat")
    return [v for v in (node.inputs if many else node.inputs[:1]) if v is not None]
