"""allocate-bits: give every layer the width it is worth, within what the user allows for the file or the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompiler.errors import UsageError
from qcompiler.mixed_precision.by_sublayer import sublayer_table
from qcompiler.mixed_precision.sensitivity import Sensitivities, sensitivities
from qcompiler.mixed_precision.smallest import smallest_acceptable
from qcompiler.mixed_precision.tables import TableTrade, table_trade
from qcompiler.mixed_precision.widths import WIDTHS, Choosable, with_widths
from qcompiler.mixed_precision.widths import choosable as choosable_weights
from qcompiler.model.sublayers import sublayers
from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, PassKind, PassResult, Target
from qcompiler.quant.allocation import MAX_SIZE, MEAN_BITS, Allocation, Budget, Item, allocate, allocation_of, kilobytes
from qcompiler.quant.frontier import BitSearch, frontier
from qcompiler.recipe import Recipe
from qcompiler.records import Metric, PassReport
from qcompiler.runtime.widths import looks_up_levels
from qcompiler.state import Context, Fact, State

FULL = 8
DOUBT = 0.01
"""Share of a file that solvers may yet save, by tables of levels that layers share."""
SOLVED_SHARE = 0.4
"""What solvers leave of the loss of layers whose codes are the nearest levels: about what they left on two Transformers
at 2 to 4 bits (see docs/solvers.md). It counts where layers are compared with tables, whose codes are final."""


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
            _refuse_one_width_too_large(state, context)
            return PassResult(state, nothing)
        layers = choosable_weights(state, recipe)
        if not layers:
            return PassResult(state, replace(nothing, notes=("no Conv, Gemm or MatMul has weights to choose for",)))
        widths = [_widths(layer, state, context) for layer in layers]
        start = _at(state, {layer.name: own[-1] for layer, own in zip(layers, widths, strict=True)})
        fixed = _fixed_bytes(start, layers, context)
        if not state.row_searches and _fits_already(recipe, fixed, layers, widths):
            note = f"{FULL} bits everywhere keep to the size limit"
            return PassResult(state, replace(nothing, notes=(note,)))
        seen = context if self.measured else replace(context, calibration=None)
        found = sensitivities(state, layers, widths, seen)
        search, state = _with_tables(_search(found, fixed), state, seen)
        search = _chosen(search, state, context)
        report = self._report(search, found, context)
        kinds = sublayers(state.model)
        report = replace(report, tables=(sublayer_table(search, kinds),)) if kinds else report
        return PassResult(_decided(state, search, layers), report)

    def _report(self, search: BitSearch, found: Sensitivities, context: Context) -> PassReport:
        chosen = search.chosen
        metrics = [
            Metric("layers", len(search.items), "weights"),
            Metric("mean width", round(chosen.mean_bits, 4), "bits"),
            Metric("predicted file", search.fixed_bytes + chosen.stored_bytes, "bytes"),
            Metric("predicted loss", float(f"{chosen.loss:.4g}"), ""),
            Metric("measured", found.trials, "runs"),
        ]
        if found.correlation is not None:
            metrics.append(Metric("rank correlation of predicted and measured loss", round(found.correlation, 3), ""))
        notes = [f"predicted loss: {found.unit}"]
        if context.recipe.floors.max_latency_ratio is not None:
            notes.append(latency_note(context.target))
        notes += [] if chosen.proven else ["the integer program ran out of time: the allocation may not be the best"]
        return PassReport(
            name=self.name,
            changed=True,
            options={"measured": self.measured},
            metrics=tuple(metrics),
            notes=tuple(notes),
        )


def latency_note(target: Target) -> str:
    """Return what a limit on latency has to do with the widths of weights on a target, on one line."""
    if looks_up_levels(target):
        why = (
            f"{target.full_name} unpacks weights once, when a session is loaded, and runs 8-bit kernels at every width"
        )
    else:
        why = f"nothing is known about what a width costs on {target.full_name}"
    return f"--max-latency-ratio decides which layers run in float, not their widths: {why}"


def asked(recipe: Recipe) -> bool:
    """Return True if a recipe leaves the widths of weights to a choice."""
    if recipe.allocation in ("mixed", "auto"):
        return True
    limits = (recipe.floors.max_size_bytes is not None or drops(recipe)) and recipe.sparsity is None
    return recipe.allocation == "limits" and limits


def drops(recipe: Recipe) -> bool:
    """Return True if a recipe limits the loss of a metric that there is."""
    return recipe.floors.max_drop is not None and recipe.has_metric


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


def _refuse_one_width_too_large(state: State, context: Context) -> None:
    """Raise UsageError if the one width that a recipe prescribes gives a file beyond its size limit."""
    recipe, limit = context.recipe, context.recipe.floors.max_size_bytes
    if recipe.allocation != "uniform" or limit is None or context.size is None:
        return
    size = context.size(state)
    if size * (1 - DOUBT) > limit:
        raise UsageError(
            f"{MAX_SIZE} {kilobytes(limit)} and {MEAN_BITS} {recipe.bits} contradict each other: these widths take "
            f"{kilobytes(size, up=True)}; ask for at least that, or leave {MEAN_BITS} out to have widths chosen"
        )


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


def _with_tables(search: BitSearch, state: State, context: Context) -> tuple[BitSearch, State]:
    """Return the search and the state with tables of the size that leaves the least loss within a limit of the file.

    Bytes go where they save most: tables are made larger or smaller until layers and tables together lose least.
    """
    limit = context.recipe.floors.max_size_bytes
    if limit is None or drops(context.recipe) or context.recipe.allocation == "auto":
        return search, state
    trade = table_trade(state, context)
    if trade is None:
        return search, state
    losses = {size: loss for size in trade.sizes() if (loss := _together(search, trade, size, context)) is not None}
    if not losses:
        return search, state
    size = min(losses, key=lambda s: losses[s])
    layers = _budgeted(replace(search, fixed_bytes=search.fixed_bytes - trade.planned_bytes + size), context.recipe)
    # Widths of layers are whole bits; what they leave over goes to the tables.
    spare = limit - (search.fixed_bytes - trade.planned_bytes + size + layers.stored_bytes)
    size = min(size + max(spare, 0), trade.sizes()[-1])
    plan = trade.planned(state.plan, size, AllocateBits.name)
    return replace(search, fixed_bytes=search.fixed_bytes - trade.planned_bytes + size), replace(state, plan=plan)


def _together(search: BitSearch, trade: TableTrade, size: int, context: Context) -> float | None:
    """Return the predicted loss of layers and tables with tables of a size, None where the layers do not fit.

    Layers are measured with codes at the nearest levels, and solved later; rows of tables are what they will be.
    """
    fixed = search.fixed_bytes - trade.planned_bytes + size
    try:
        layers = _budgeted(replace(search, fixed_bytes=fixed), context.recipe)
    except UsageError:
        return None
    return SOLVED_SHARE * layers.loss + trade.loss(size)


def _chosen(search: BitSearch, state: State, context: Context) -> BitSearch:
    """Return the search with the allocation that the recipe asks for."""
    recipe = context.recipe
    limit = recipe.floors.max_size_bytes
    mean = recipe.weight_bits if recipe.allocation == "mixed" else None
    by_accuracy = mean is None and (recipe.allocation == "auto" or drops(recipe))
    if by_accuracy and context.acceptable is not None:
        wanted = smallest_acceptable(search, state, context)
        needed = None if wanted is None else search.fixed_bytes + wanted.stored_bytes
        search = replace(search, needed_bytes=needed, chosen=search.chosen if wanted is None else wanted)
        if limit is None or search.fixed_bytes + search.chosen.stored_bytes <= limit:
            return search
    elif by_accuracy and limit is None and recipe.allocation == "auto":
        raise UsageError("--bits auto needs samples to judge accuracy by: give --data, or bits such as W4A8")
    if mean is None and limit is None:
        return search
    return replace(search, chosen=_budgeted(search, recipe))


def _budgeted(search: BitSearch, recipe: Recipe) -> Allocation:
    """Return the allocation of least predicted loss within the bytes and the mean bits of a recipe."""
    mean = recipe.weight_bits if recipe.allocation == "mixed" else None
    limit = recipe.floors.max_size_bytes
    return allocate(search.items, Budget(max_bytes=limit, fixed_bytes=search.fixed_bytes, mean_bits=mean))


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
