"""solve-codes: codes, scales and levels of weights below 8 bits, by a contest of solvers on every layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qcompiler.attention_problems import AttentionProblems, Samples, attention_problems
from qcompiler.data import Dataset
from qcompiler.errors import UsageError
from qcompiler.layer_problems import PlannedWeight, gram_matrices, planned_weights, row_floor
from qcompiler.plan import TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.gram import dead_inputs, is_singular
from qcompiler.quant.grid import power_ratio_db
from qcompiler.quant.levels import Levels
from qcompiler.quant.solvers import COUPLED, SOLVERS
from qcompiler.quant.solvers.by_head import HeadRows
from qcompiler.quant.solvers.contest import (
    MIXTURE,
    TABLES,
    Contest,
    Layer,
    hold_contest,
    plain_choice,
    tables_for,
)
from qcompiler.quant.solvers.problem import Solution
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.runtime.grams import POSITIONS, GramOptions
from qcompiler.runtime.widths import looks_up_levels
from qcompiler.state import Context, Fact, State

BY_EFFORT = {
    0: "nearest",
    1: "nearest+gptq+descent+boa",
    2: "nearest+gptq+descent+adaround+flexround+boa+aespa",
}
"""Solvers by effort, where none are named; more effort takes the last."""

NAMED = 3
"""Layers that a note names."""

HELD_SHARE = 2
"""Without acceptance samples, every second calibration sample decides instead of solving."""

Float64 = NDArray[np.float64]


class Moments(NamedTuple):
    """Second moments of a layer's inputs, on the samples that solvers see and on those that decide, and its heads."""

    search: Float64
    held: Float64
    heads: tuple[HeadRows, ...] = ()


@dataclass(frozen=True, slots=True)
class SolveCodes:
    """Chooses codes, scales and levels of every planned weight below 8 bits by the error of the layer's output.

    The error of a layer is tr(E H E^T) with H the second moment of its inputs. Every solver minimizes it on the
    calibration samples, and the one with the least error on the acceptance samples wins. Layers without such an H
    (other operators, no samples, too many inputs) are rounded to nearest with scales by the weighted error.

    Weights with a scale for every block of inputs get all of them refitted too, on the levels that were planned.

    Rows that are queries, keys or values of attention are judged by what their errors change there, and "boa" and
    "aespa" minimize that. They take part only where attention is found.

    Attributes:
        solvers: names joined by "+"; "" takes those of the effort.
        tables: levels to try, of "uniform", "even" and "fitted", joined by "+"; a target whose runtime reads codes
            as numbers keeps the planned ones.
        max_bits: widths above are left alone; 8-bit weights always are.
        limit: multiply-accumulates a solver may take on one layer; beyond, it does not take part there.
        positions: input columns per layer.
    """

    name: ClassVar[str] = "solve-codes"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.STATISTICS, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    solvers: str = ""
    tables: str = "+".join(TABLES)
    max_bits: int = 7
    limit: float = 3e11
    positions: int = POSITIONS

    def __post_init__(self) -> None:
        for option, given, known in (("solvers", self.solvers, SOLVERS), ("tables", self.tables, TABLES)):
            for name in given.split("+") if given else ():
                if name not in known:
                    raise UsageError(f"solve-codes: {option} {name!r} is none of {', '.join(known)}")
        if not self.tables:
            raise UsageError(f"solve-codes: tables is empty; name some of {', '.join(TABLES)}")
        if not 1 <= self.max_bits <= 7:
            raise UsageError(f"solve-codes: max_bits is {self.max_bits}; it must be 1 to 7")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with codes for every weight of few bits; without any, nothing is done.

        Raises:
            DataError: the model does not run on a sample.
        """
        weights = planned_weights(state, range(1, self.max_bits + 1), blocks=True)
        solvers = (self.solvers or BY_EFFORT[min(context.recipe.effort, max(BY_EFFORT))]).split("+")
        options = {"solvers": "+".join(solvers), "tables": self.tables}
        if not weights:
            metrics = (Metric("solved", 0, "weights"),)
            return PassResult(state, PassReport(name=self.name, changed=False, options=dict(options), metrics=metrics))
        with threadpool_limits(context.recipe.threads):  # sums of other threads would round otherwise
            return self._contests(state, context, weights, options)

    def _contests(
        self, state: State, context: Context, weights: Sequence[PlannedWeight], options: dict[str, str]
    ) -> PassResult:
        solvers = options["solvers"].split("+")
        search, held = self._moments(state, context, weights)
        attention = self._attention(state, weights, solvers, (search, held))
        done: list[TensorPlan] = []
        contests: dict[str, Contest] = {}
        skipped: list[Skip] = []
        for number, weight in enumerate(weights):
            context.progress("solving codes", number, len(weights))
            name = weight.entry.name
            if search is not None and held is not None and name in search.grams:
                heads = attention.heads.get(name, ()) if attention is not None else ()
                moments = Moments(search.grams[name], held.grams[name], heads)
                entry, contests[name] = self._solved(state, self._free(weight, context), moments, solvers)
            else:
                entry = self._rounded(state, self._free(weight, context))
                skipped.append(Skip(name, f"rounded to nearest: {weight.refusal or 'there are no samples'}"))
            done.append(entry)
        report = PassReport(
            name=self.name,
            changed=True,
            options=dict(options),
            metrics=(*_metrics(len(done), contests), *_attention_metrics(attention)),
            skipped=tuple(skipped),
            notes=(*_singular_notes(search.grams if search else {}), *_attention_notes(attention)),
            tables=(
                *((_table(solvers, contests, attention.heads if attention else ()),) if contests else ()),
                *((attention.table(),) if attention else ()),
            ),
        )
        return PassResult(replace(state, plan=state.plan.with_tensors(*done)), report)

    def _moments(
        self, state: State, context: Context, weights: Sequence[PlannedWeight]
    ) -> tuple[Samples | None, Samples | None]:
        """Return the samples that solvers see, and those that decide, with H of every layer on them."""
        search, held = _split(context)
        if search is None or held is None:
            return None, None
        parts = []
        for what, samples, positions in (("solve", search, self.positions), ("decide", held, self.positions // 2)):
            options = GramOptions(
                threads=context.recipe.threads,
                positions=positions,
                seed=context.recipe.seed,
                progress=lambda done, total, what=what: context.progress(f"moments to {what} on", done, total),  # type: ignore[misc]
            )
            parts.append(Samples(samples, options, gram_matrices(state, weights, samples, options)))
        return parts[0], parts[1]

    @staticmethod
    def _attention(
        state: State,
        weights: Sequence[PlannedWeight],
        solvers: Sequence[str],
        moments: tuple[Samples | None, Samples | None],
    ) -> AttentionProblems | None:
        """Return what attention makes of the weights, None where no solver asks for it or there is none."""
        if not set(solvers) & set(COUPLED):
            return None
        found = attention_problems(state, weights, *moments)
        return found if found.blocks or found.missed else None

    def _tables(self, weight: PlannedWeight, layer: Layer) -> dict[str, Levels]:
        if weight.entry.levels is not None:
            return {"planned": weight.entry.levels}
        return tables_for(layer, weight.num_bits, self.tables.split("+"))

    @staticmethod
    def _free(weight: PlannedWeight, context: Context) -> PlannedWeight:
        """Return the weight without planned levels, where the runtime looks levels up, whichever they are.

        The kernels of products with a scale for every block compute with the codes.
        """
        if weight.block_size or not looks_up_levels(context.target):
            return weight
        return replace(weight, entry=replace(weight.entry, levels=None, codes=None))

    def _solved(
        self, state: State, weight: PlannedWeight, moments: Moments, solvers: Sequence[str]
    ) -> tuple[TensorPlan, Contest]:
        kernel = weight.layout.kernel if weight.layout is not None else 1
        floor = row_floor(state, weight)
        layer = Layer(
            weight=weight.rows(),
            gram=moments.search,
            held=moments.held,
            floor=floor,
            kernel=kernel,
            heads=moments.heads,
            block_size=weight.block_size,
        )
        contest = hold_contest(layer, self._tables(weight, layer), solvers, self.limit)
        won = contest.winner
        reason = _reason(contest, "attention" if layer.heads else "output")
        return self._entry(weight, won.levels, won.solution, reason), contest

    def _rounded(self, state: State, weight: PlannedWeight) -> TensorPlan:
        if weight.block_size:
            return weight.entry  # its blocks were searched by the power of their inputs, which says more
        rows, floor = weight.rows(), row_floor(state, weight)
        alike = np.ones((1, 1, 1))
        layer = Layer(weight=rows, gram=alike, held=alike, floor=floor)
        tables = self._tables(weight, layer)
        table, levels, solution = plain_choice(rows, alike, floor, tables)
        return self._entry(weight, levels, solution, f"nearest on {table} levels, by the squared error of the weights")

    def _entry(self, weight: PlannedWeight, levels: Levels, solution: Solution, reason: str) -> TensorPlan:
        scale = weight.scale(solution.scale)
        exact, rounded = weight.rows(), solution.weight()
        signal, noise = (float(np.square(a).sum()) for a in (exact, rounded - exact))
        reach = float(scale.max()) * max(abs(int(levels[0])), abs(int(levels[-1])))
        return replace(
            weight.entry,
            codes=weight.shaped(solution.codes),
            scale=scale,
            zero_point=np.zeros(scale.shape, np.int32),
            levels=levels,
            clip=(-reach, reach),
            error_db=power_ratio_db(signal, noise),
            reason=reason,
            decided_by=(*weight.entry.decided_by, self.name),
        )


def _split(context: Context) -> tuple[Dataset | None, Dataset | None]:
    """Return the samples to solve on and those to decide on, which are the same if there is only one."""
    if context.calibration is None or context.acceptance is not None:
        return context.calibration, context.acceptance
    from qcompiler.data import Subset

    every = tuple(range(len(context.calibration)))
    held = every[1::HELD_SHARE] or every
    search = tuple(i for i in every if i not in held) or every
    return Subset(context.calibration, search), Subset(context.calibration, held)


def _singular_notes(grams: Mapping[str, NDArray[np.float64]]) -> tuple[str, ...]:
    """Return in one line which layers have a singular Gram matrix, and what becomes of them."""
    names = [name for name, gram in grams.items() if is_singular(gram)]
    if not names:
        return ()
    dead = sum(dead_inputs(grams[name]) for name in names)
    some = f" (never varied: {dead}; weights of these are rounded to nearest)" if dead else ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"singular Gram matrix of {', '.join(names[:NAMED])}{more}: the samples do not tell all inputs apart{some}; "
        "damping decides what they leave open; more of --calibration-samples leave less",
    )


def _level(power: float, error: float | None) -> float | None:
    return power_ratio_db(power, error) if error is not None else None


def _reason(contest: Contest, judged: str) -> str:
    won = contest.winner
    best, plain = _level(contest.power, won.error), _level(contest.power, contest.error_of("nearest"))
    text = f"{won.solver} on {won.table} levels"
    if best is not None:
        text += f": {judged} at {best:.1f} dB on held-out samples"
    if best is not None and plain is not None and won.solver != "nearest":
        text += f", {best - plain:.1f} dB above nearest"
    return "; ".join((text, *contest.absent))


def _metrics(solved: int, contests: Mapping[str, Contest]) -> tuple[Metric, ...]:
    wins: dict[str, int] = {}
    for contest in contests.values():
        wins[contest.winner.solver] = wins.get(contest.winner.solver, 0) + 1
    return (
        Metric("solved", solved, "weights"),
        *(Metric(f"won by {name}", wins[name], "layers") for name in (*SOLVERS, MIXTURE) if name in wins),
    )


def _attention_metrics(attention: AttentionProblems | None) -> tuple[Metric, ...]:
    if attention is None:
        return ()
    matched = sum(b.matched for b in attention.blocks)
    return (
        Metric("attention", len(attention.blocks) + len(attention.missed), "blocks"),
        Metric("attention matched", matched, "blocks"),
    )


def _attention_notes(attention: AttentionProblems | None) -> tuple[str, ...]:
    """Return why layers are solved without regard to the attention they belong to."""
    if attention is None:
        return ()
    missed = {m.name: m.reason for m in attention.missed}
    return tuple(
        f"attention '{name}' is solved in part as plain layers: {reason}"
        for name, reason in {**attention.fallbacks, **missed}.items()
    )


def _table(solvers: Sequence[str], contests: Mapping[str, Contest], heads: Collection[str]) -> Table:
    took_part = {e.solver for contest in contests.values() for e in contest.entrants}
    columns = [n for n in (*solvers, MIXTURE) if n in took_part or (n not in COUPLED and n != MIXTURE)]
    rows = [
        TableRow(
            name=name,
            values=tuple(_level(contest.power, contest.error_of(column)) for column in columns),
            note=f"{contest.winner.solver}, {contest.winner.table}" + (", through attention" if name in heads else ""),
        )
        for name, contest in contests.items()
    ]
    return Table("SQNR of each layer's output on held-out samples, by solver", "dB", tuple(columns), tuple(rows))
