"""Repair below 8 bits: which layers did the damage, why, and the next allocation to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.layers import SATURATED_SHARE, clipped_share
from qcompiler.lowering import mean_shift
from qcompiler.mixed_precision.smallest import smallest_acceptable
from qcompiler.mixed_precision.widths import Choosable, choosable, row_importance, weight_rows, with_widths
from qcompiler.pipeline import Pipeline
from qcompiler.plan import QuantSpec, Role, TensorPlan
from qcompiler.protocols import Pass
from qcompiler.quant.allocation import MAX_SIZE, Allocation, kilobytes
from qcompiler.quant.frontier import BitSearch
from qcompiler.quant.weights import absmax_scale, as_blocks
from qcompiler.quant.width_error import width_errors
from qcompiler.recipe import Recipe
from qcompiler.records import Floor, LayerDamage, Verdict
from qcompiler.repair.tables import table_damages
from qcompiler.state import Context, Fact, State

FULL = 8
RANKED = 6
"""Layers whose damage is measured, by two trials each: those with the largest predicted loss."""
STEP = 0.6
"""The next point has at most this share of the predicted loss, less where decibels are missing."""
SPARE_BYTES = 64
DB_A_BIT = 6.0
"""What the SQNR of uniform rounding gains with every bit."""
NEARLY_FULL = 6
"""Above this width whole bytes are taken: 7 bits save little."""
NAME = "repair"
LITTLE_DB = 0.1
"""A layer that gains less from 8-bit weights does not suffer from their rounding."""
CLEAR_DB = 1.0
"""Where 8-bit weights everywhere gain less than this, more bits are no cure."""
AFTER_WIDTHS = frozenset({"scale-weights", "solve-codes", "prune", "flexor", "correct-bias"})
"""Passes that run again when a repair changes the widths of weights or how many of them are 0."""


def rescaling(passes: Sequence[Pass], context: Context) -> Callable[[State], State]:
    """Return what gives weights whose width was changed their scales and codes, as the compilation did."""
    steps = Pipeline(tuple(p for p in passes if p.name in AFTER_WIDTHS), check=False)
    return lambda state: steps.run(state, context)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Widening:
    """Other widths for the weights of a plan.

    Attributes:
        state: with them, weights without scales.
        changed: names of the weights whose width is another.
        more: there are more bits than before.
        widths: what they were and are, for the report.
    """

    state: State
    changed: tuple[str, ...]
    more: bool
    widths: str


def other_widths(
    state: State, verdict: Verdict, context: Context, raised: int, tried: Container[tuple[int, ...]] = ()
) -> Widening | None:
    """Return other widths to try after a missed floor, None if they cannot help.

    Args:
        state: completely planned.
        verdict: what the gate found.
        context: of the compilation.
        raised: how often there were more bits already.
        tried: allocations, by their bits, that the gate has seen already.
    """
    if state.bit_search is None:
        return widened(state, verdict, context)
    search = _weighed(state.bit_search, verdict)
    point = next_point(search, verdict, context.recipe, raised)
    if point is None or point.bits in tried:
        return None
    found, changed = rewidened(state, search, point)
    widths = f"({search.chosen.mean_bits:.2f} -> {point.mean_bits:.2f} on average)"
    return Widening(found, changed, point.loss < search.chosen.loss, widths)


def _weighed(search: BitSearch, verdict: Verdict) -> BitSearch:
    """Return a search that knows from the written file what of it is no weight: before, that was an estimate."""
    size = sum(n for name, n in verdict.file_bytes.items() if name.startswith("model.onnx"))
    return replace(search, fixed_bytes=size - search.chosen.stored_bytes) if size else search


def next_point(search: BitSearch, verdict: Verdict, recipe: Recipe, raised: int = 0) -> Allocation | None:
    """Return the allocation to try after a missed floor, None if another allocation cannot help.

    A file that is too large gets the best point that is smaller by as much; an accuracy that is missed gets the
    smallest point with clearly less predicted loss, and with ever less at every further try: 0.6 of it, then 0.36,
    0.13, 0.02. A size limit that the user gave is never given up for that.

    Args:
        search: with the allocation that was tried.
        verdict: what the gate found.
        recipe: as asked.
        raised: how often there were more bits already.
    """
    sizes = [f.reached - f.limit for f in verdict.missed if f.unit == "bytes" and f.reached is not None]
    if sizes:
        point = search.best_within(search.chosen.stored_bytes - max(sizes) - SPARE_BYTES)
    elif misses_accuracy(verdict):
        share = min(STEP ** (2**raised), 10 ** (-(deficit_db(verdict) + 0.5) / 10))
        point = search.smallest_within(search.chosen.loss * share) or search.points[-1]
        limit = recipe.floors.max_size_bytes
        if limit is not None and search.fixed_bytes + point.stored_bytes > limit:
            point = search.best_within(limit - search.fixed_bytes)
        if point is not None and point.loss >= search.chosen.loss:
            return None
    else:
        return None
    return None if point is None or point.bits == search.chosen.bits else point


def misses_accuracy(verdict: Verdict) -> bool:
    """Return True if a floor on accuracy was measured and missed."""
    return any(_of_accuracy(f) for f in verdict.missed if f.reached is not None)


def _of_accuracy(floor: Floor) -> bool:
    return floor.unit != "bytes" and "latency" not in floor.name


def with_nearest(verdict: Verdict, state: State, context: Context) -> Verdict:
    """Return a verdict whose missed floors on accuracy say which file size would probably hold them.

    That is said where a size limit of the user left no room for what accuracy needs. Where it was not known before,
    it is searched for now.

    Args:
        verdict: of the gate.
        state: that the gate judged.
        context: of the compilation.
    """
    search, limit = state.bit_search, context.recipe.floors.max_size_bytes
    if search is None or limit is None or not misses_accuracy(verdict):
        return verdict
    needed = search.needed_bytes
    if needed is None and context.acceptable is not None:
        point = smallest_acceptable(search, _unscaled(state), context)
        needed = None if point is None else search.fixed_bytes + point.stored_bytes
    if needed is None or needed <= limit:
        return verdict
    said = f"{MAX_SIZE} {kilobytes(limit)} leaves no room for it: about {kilobytes(needed, up=True)} would hold it"
    floors = (replace(f, detail=said) if f.held is False and _of_accuracy(f) else f for f in verdict.floors)
    return replace(verdict, floors=tuple(floors))


def rewidened(state: State, search: BitSearch, point: Allocation) -> tuple[State, tuple[str, ...]]:
    """Return the state with the widths of another point, weights without scales, and the names that changed."""
    before, after = search.widths(search.chosen), search.widths(point)
    changed = {name: bits for name, bits in after.items() if bits != before[name]}
    reasons = {n: f"{bits} bits instead of {before[n]}, so that a floor holds" for n, bits in changed.items()}
    return replace(_at_widths(state, changed, reasons), bit_search=replace(search, chosen=point)), tuple(changed)


def _at_widths(state: State, widths: Mapping[str, int], reasons: Mapping[str, str]) -> State:
    """Return the state with other widths of some weights; what moved their layers' biases fitted the old codes."""
    readers = [n for n in state.model.graph if any(v is not None and v.name in widths for v in n.inputs)]
    biases = frozenset(f"{n.name}:bias" for n in readers)
    return replace(state, plan=with_widths(state.plan, widths, reasons, NAME).without_tensors(biases))


def widened(state: State, verdict: Verdict, context: Context) -> Widening | None:
    """Return the weights wider that have the one width of the recipe, None where that is no cure.

    That is the repair of a plan without an allocation, such as ``W4A8:uniform``: its weights keep one width. They
    get one bit more, or as many as decibels are missing (6 dB a bit); from 6 bits on they get all 8. Weights whose
    width a rule prescribes keep it, and a size limit that the user gave is never given up.

    Args:
        state: completely planned, without an allocation.
        verdict: what the gate found.
        context: of the compilation.
    """
    free = [c for c in choosable(state, context.recipe) if c.fixed is None and width_of(c.entry) < FULL]
    if not free or not misses_accuracy(verdict):
        return None
    before = min(width_of(c.entry) for c in free)
    after = before + max(1, math.ceil(deficit_db(verdict) / DB_A_BIT))
    after = after if after <= NEARLY_FULL else FULL
    changed = {c.name: after for c in free if width_of(c.entry) < after}
    reasons = dict.fromkeys(changed, f"{after} bits instead of {before}, so that a floor holds")
    found = _at_widths(state, changed, reasons)
    limit = context.recipe.floors.max_size_bytes
    if limit is not None and context.size is not None and context.size(_unscaled(found)) > limit:
        return None
    return Widening(found, tuple(changed), more=True, widths=f"everywhere ({before} -> {after})")


def _unscaled(state: State) -> State:
    """Return the state as one whose weights have to be scaled again before it can be lowered."""
    return replace(state, facts=state.facts - {Fact.WEIGHT_SCALES})


def more_bits_help(state: State, context: Context) -> bool:
    """Return True if 8-bit weights everywhere would gain clearly in SQNR on the acceptance samples, or it is unknown.

    Where they do not, the loss comes from activations or from what runs in integers, and bits would be wasted on it.

    Args:
        state: completely planned.
        context: with a trial; without one nothing is known.
    """
    if context.trial is None:
        return True
    below = [c for c in choosable(state, context.recipe) if width_of(c.entry) < FULL]
    return bool(below) and context.trial(_at_full_width(state, *below)) - context.trial(state) >= CLEAR_DB


def below_full(state: State) -> bool:
    """Return True if some weight has fewer bits than a byte."""
    return any(t.role is Role.WEIGHT and width_of(t) < FULL for t in state.plan.tensors.values())


def width_of(entry: TensorPlan) -> int:
    """Return the bits of a planned weight; one without a grid counts as full."""
    return entry.spec.num_bits if entry.spec is not None else FULL


def deficit_db(verdict: Verdict) -> float:
    """Return how many dB the worst SQNR floor is missed by, 0 where the missed floor is no SQNR."""
    gaps = [f.limit - f.reached for f in verdict.missed if f.unit == "dB" and f.reached is not None]
    return max(gaps, default=0.0)


def ranked_damage(state: State, context: Context) -> list[LayerDamage]:
    """Return the layers below 8 bits that cost most accuracy, worst first, each with its likely cause.

    The damage of a layer is what the SQNR on the acceptance samples gains when that layer alone has 8-bit weights.
    Measured are the layers with the largest predicted loss, or without a prediction the largest rounding error, and
    the embedding tables whose rows have fewer bits.

    Args:
        state: completely planned.
        context: with a trial; without one nothing can be measured, and the list is empty.
    """
    trial = context.trial
    if trial is None:
        return []
    below = [c for c in choosable(state, context.recipe) if width_of(c.entry) < FULL]
    widths = {c.name: width_of(c.entry) for c in below}
    losses = _losses(state, below)
    worst = sorted(below, key=lambda c: (-losses[c.name], c.name))[:RANKED]
    level = trial(state)
    found = []
    for layer in worst:
        gain = trial(_at_full_width(state, layer)) - level
        name = layer.uses[0].name or ""
        found.append(LayerDamage(name=name, bits=widths[layer.name], damage_db=gain, cause=_cause(state, layer, gain)))
    found += table_damages(state, trial, level)
    return sorted(found, key=lambda d: (-d.damage_db, d.name))


def _losses(state: State, layers: Sequence[Choosable]) -> dict[str, float]:
    """Return weight -> predicted loss at its width, without an allocation the relative error of the output."""
    if state.bit_search is not None:
        predicted = {item.name: item for item in state.bit_search.items}
        return {c.name: predicted[c.name].loss_at(width_of(c.entry)) for c in layers}
    return {
        c.name: float(width_errors(weight_rows(c), row_importance(state, c), (width_of(c.entry),))[0]) for c in layers
    }


def _at_full_width(state: State, *layers: Choosable) -> State:
    """Return the state with 8-bit weights in some layers, and with their biases corrected for these."""
    entries = []
    for layer in layers:
        spec = replace(layer.entry.spec or QuantSpec(signed=True, symmetric=True), num_bits=FULL)
        rows = weight_rows(layer)
        parts = rows if spec.block_size is None else as_blocks(rows, None, spec.block_size)[0]
        shape = () if spec.axis is None else (len(rows),) if spec.block_size is None else (len(rows), -1)
        scale = absmax_scale(parts, spec.code_range[1]).reshape(shape)
        zero = np.zeros(scale.shape, np.int32)
        entries.append(replace(layer.entry, spec=spec, scale=scale, zero_point=zero, codes=None, levels=None))
    full = replace(state, plan=state.plan.with_tensors(*entries))
    biases = []
    for node in (n for layer in layers for n in layer.uses):
        planned, shift = full.plan.tensors.get(f"{node.name}:bias"), mean_shift(full, node)
        if planned is not None and shift is not None:
            biases.append(replace(planned, correction=-shift))
    return replace(full, plan=full.plan.with_tensors(*biases))


def _cause(state: State, layer: Choosable, gain: float) -> str:
    """Return why a layer loses accuracy: its weights where more bits help, else what its output looks like."""
    if gain > LITTLE_DB:
        return "rounding of the weights"
    name = layer.uses[0].outputs[0].name or ""
    statistics, entry = state.statistics.get(name), state.plan.activation(name)
    if statistics is None or entry is None or entry.clip is None:
        return "little of its own"
    if statistics.low == statistics.high:
        return "dead: its output is constant"
    if clipped_share(statistics, entry.clip) > SATURATED_SHARE:
        return "clipping of its output"
    return "little of its own"


def with_actions(damages: Sequence[LayerDamage], state: State, action: str = "") -> list[LayerDamage]:
    """Return the damages with what was done about each: the change of its width, or ``action`` if given."""
    widths = {name: width_of(entry) for name, entry in state.plan.tensors.items() if entry.role is Role.WEIGHT}
    names = {n.name: n.inputs[1].name for n in state.model.graph if len(n.inputs) > 1 and n.inputs[1] is not None}
    done = []
    for damage in damages:
        bits = widths.get(names.get(damage.name) or "", damage.bits)
        said = action or (
            f"{damage.bits} -> {bits} bits"
            if bits != damage.bits
            else f"kept at {bits} bits: elsewhere a byte saves more"
        )
        done.append(replace(damage, action=said))
    return done
