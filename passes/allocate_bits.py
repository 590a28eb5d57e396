"""allocate-bits: give every layer the width it is worth, within what the user allows for the file or the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompiler.errors import UsageError
from qcompiler.mixed_precision.sensitivity import Sensitivities, sensitivities
from qcompiler.mixed_precision.widths import WIDTHS, Choosable, with_widths
from qcompiler.mixed_precision.widths import choosable as choosable_weights
from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, PassKind, PassResult
from qcompiler.quant.allocation import Allocation, Budget, Item, allocate, allocation_of
from qcompiler.quant.frontier import BitSearch, frontier
from qcompiler.recipe import Recipe
from qcompiler.records import Metric, PassReport
from qcompiler.state import Context, Fact, State

FULL = 8
CANDIDATES = 48
"""Points of the frontier that a search by accuracy chooses from; bisection tries about six of them."""


@dataclass(frozen=True, slots=True)
class AllocateBits:
    """Chooses the width of every weight of Conv, Gemm and MatMul, the first and the last layer among them.

    The predicted loss of each layer at each width comes from one search
    (``qcompiler.mixed_precision.sensitivity``); which layer gets how many bits is then an exact
    integer program. With a budget in bytes or mean bits the predicted loss is made least; with a floor on accuracy
    the smallest file is found whose accuracy holds on samples that the gate does not use. Without any of these
    nothing is done.

    Attributes:
        measured: measure how the loss rises with each layer's error; False compares layers by their own error.
    """

    name: ClassVar[str] = "allocate-bits"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHT_SCALES})
    measured: bool = True

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a width for every weight.

        Raises:
            UsageError: the budgets cannot be met, or accuracy is to be searched for without data.
        """
        recipe = context.recipe
        nothing = PassReport(name=self.name, changed=False, options={"measured": self.measured})
        if not asked(recipe):
            return PassResult(state, nothing)
        layers = choosable_weights(state, recipe)
        if not layers:
            return PassResult(state, replace(nothing, notes=("no Conv, Gemm or MatMul has weights to choose for",)))
        widths = [_widths(layer, state, context) for layer in layers]
        start = _at(state, {layer.name: own[-1] for layer, own in zip(layers, widths, strict=True)})
        fixed = _fixed_bytes(start, layers, context)
        if _fits_already(recipe, fixed, layers, widths):
            note = f"{FULL} bits everywhere keep to the size limit"
            return PassResult(state, replace(nothing, notes=(note,)))
        found = sensitivities(state, layers, widths, context if self.measured else replace(context, calibration=None))
        search = _search(found, fixed)
        search = replace(search, chosen=_chosen(search, state, context))
        return PassResult(_decided(state, search, layers), self._report(search, found, fixed))

    def _report(self, search: BitSearch, found: Sensitivities, fixed: int) -> PassReport:
        chosen = search.chosen
        metrics = [
            Metric("layers", len(search.items), "weights"),
            Metric("mean width", round(chosen.mean_bits, 4), "bits"),
            Metric("predicted file", fixed + chosen.stored_bytes, "bytes"),
            Metric("predicted loss", float(f"{chosen.loss:.4g}"), ""),
            Metric("measured", found.trials, "runs"),
        ]
        if found.correlation is not None:
            metrics.append(Metric("rank correlation of predicted and measured loss", round(found.correlation, 3), ""))
        notes = [f"loss: {found.unit}"]
        notes += [] if chosen.proven else ["the integer program ran out of time: the allocation may not be the best"]
        return PassReport(
            name=self.name,
            changed=True,
            options={"measured": self.measured},
            metrics=tuple(metrics),
            notes=tuple(notes),
        )


def asked(recipe: Recipe) -> bool:
    """Return True if a recipe leaves the widths of weights to a choice."""
    if recipe.allocation in ("mixed", "auto"):
        return True
    limits = (recipe.floors.max_size_bytes is not None or drops(recipe)) and recipe.sparsity is None
    return recipe.allocation == "limits" and limits


def drops(recipe: Recipe) -> bool:
    """Return True if a recipe limits the loss of a metric that there is."""
    known = recipe.labels is not None or recipe.metric not in ("auto", "top1", "sqnr")
    return recipe.floors.max_drop is not None and known


def _widths(layer: Choosable, state: State, context: Context) -> tuple[int, ...]:
    """Return the widths that the recipe and the target leave to a weight, rising."""
    if layer.fixed is not None:
        return (layer.fixed,)
    known = [bits for bits in WIDTHS if bits in context.target.weight_bits]
    return tuple(bits for bits in known if _runs(layer, bits, state, context)) or (FULL,)


def _runs(layer: Choosable, bits: int, state: State, context: Context) -> bool:
    spec = replace(layer.entry.spec or QuantSpec(signed=True, symmetric=True), num_bits=bits)
    for node in layer.uses:
        decision = state.plan.nodes.get(node.name or "")
        wanted = decision.precision if decision is not None else Precision.FLOAT
        if wanted not in (Precision.INTEGER, Precision.DYNAMIC):
            continue  # weights alone are decoded from any width
        if not isinstance(context.target.legalize(node.op_type, wanted, spec), OpRule):
            return False
    return True


def _at(state: State, widths: Mapping[str, int]) -> State:
    return replace(state, plan=with_widths(state.plan, widths, {}, AllocateBits.name))


def _fixed_bytes(start: State, layers: Sequence[Choosable], context: Context) -> int:
    """Return what of the file is no weight: that of the file with the widest codes, less those codes."""
    if context.size is None:
        return 0
    codes = sum(_stored(layer.size, start.plan.tensors[layer.name].spec) for layer in layers)
    return max(context.size(start) - codes, 0)


def _stored(size: int, spec: QuantSpec | None) -> int:
    return -(-size * (FULL if spec is None else spec.num_bits) // 8)


def _fits_already(recipe: Recipe, fixed: int, layers: Sequence[Choosable], widths: Sequence[tuple[int, ...]]) -> bool:
    limit = recipe.floors.max_size_bytes
    if recipe.allocation != "limits" or limit is None or drops(recipe):
        return False
    return fixed + sum(-(-layer.size * own[-1] // 8) for layer, own in zip(layers, widths, strict=True)) <= limit


def _search(found: Sensitivities, fixed: int) -> BitSearch:
    items = found.items
    return BitSearch(
        items=items,
        fixed_bytes=fixed,
        points=frontier(items),
        chosen=allocation_of(items, [item.bits[-1] for item in items]),
        unit=found.unit,
        correlation=found.correlation,
        checked=found.checked,
        trials=found.trials,
    )


def _chosen(search: BitSearch, state: State, context: Context) -> Allocation:
    """Return the allocation that the recipe asks for."""
    recipe = context.recipe
    limit = recipe.floors.max_size_bytes
    mean = recipe.weight_bits if recipe.allocation == "mixed" else None
    if mean is not None:
        return allocate(search.items, Budget(max_bytes=limit, fixed_bytes=search.fixed_bytes, mean_bits=mean))
    by_accuracy = recipe.allocation == "auto" or drops(recipe)
    if by_accuracy and context.acceptable is not None:
        wanted = _smallest(search, lambda point: _acceptable(search, point, state, context))
        if limit is None or search.fixed_bytes + wanted.stored_bytes <= limit:
            return wanted
    elif recipe.allocation == "auto" and limit is None:
        raise UsageError("--bits auto needs samples to judge accuracy by: give --data, or bits such as W4A8")
    if limit is not None:
        return allocate(search.items, Budget(max_bytes=limit, fixed_bytes=search.fixed_bytes))
    return search.chosen


def _acceptable(search: BitSearch, point: Allocation, state: State, context: Context) -> bool:
    return context.acceptable is not None and context.acceptable(_at(state, search.widths(point)))


def _smallest(search: BitSearch, holds: Callable[[Allocation], bool]) -> Allocation:
    """Return the smallest point of the frontier that holds, by bisection; the widest widths if none does."""
    stride = max(1, -(-len(search.points) // CANDIDATES))
    points = [*search.points[::-1][::stride]][::-1]
    low, high = 0, len(points) - 1
    if not holds(points[high]):
        return search.chosen
    while low < high:
        middle = (low + high) // 2
        if holds(points[middle]):
            high = middle
        else:
            low = middle + 1
    return points[high]


def _decided(state: State, search: BitSearch, layers: Sequence[Choosable]) -> State:
    reasons = {}
    fixed = {layer.name for layer in layers if layer.fixed is not None}
    for item, bits in zip(search.items, search.chosen.bits, strict=True):
        reasons[item.name] = reason(item, bits, search.chosen, prescribed=item.name in fixed)
    plan = with_widths(state.plan, search.widths(search.chosen), reasons, AllocateBits.name)
    return replace(state, plan=plan, bit_search=search)


def reason(item: Item, bits: int, chosen: Allocation, *, prescribed: bool) -> str:
    """Return why a weight has its width, on one line."""
    width = f"{bits} bit{'s' if bits > 1 else ''}"
    if prescribed:
        return f"{width}: set by [match]"
    share = item.loss_at(bits) / chosen.loss if chosen.loss > 0 else 0.0
    return f"{width}: {100 * share:.2g} % of the predicted loss in {item.stored_bytes(bits)} bytes"
