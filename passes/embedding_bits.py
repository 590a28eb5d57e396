"""embedding-bits: give every row of every embedding table the bits it is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ModelError, UsageError
from qcompiler.lookups import Table, count_readings, find_tables, fitted_counts, read_counts
from qcompiler.model.edit import constant_of
from qcompiler.model.weights import weight_operands
from qcompiler.plan import CompressionPlan, NodePlan, Precision, Role, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.row_bits import (
    RowAllocation,
    fewest_bytes,
    geometric_bits,
    row_importance,
    smoothed_counts,
)
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.row_codes import GRID_BITS, RowCodes, RowKind
from qcompiler.row_search import (
    RowProblem,
    RowSearch,
    candidates,
    grid_block,
    grid_codes,
    lost_share,
    with_transform,
)
from qcompiler.state import Context, Fact, State
from qcompiler.unpacking.writer import MIN_OPSET

if TYPE_CHECKING:
    from qcompiler.executor.lookup_metric import LookupMetric

LOWERING = "pack-embeddings"
SIZE_SHARE = 0.25
"""Share of ``--max-size`` that tables get where nothing else is said."""
CODES = ("auto", *RowKind)
ALLOCATIONS = ("rows", "clusters")
_GRAPH_BYTES = 2500
"""What the operators that decode one table take in the file, names and tables of signs among them."""
TRANSFORM_WORK = 0.02
"""What multiplying a row by its transform may take, as a share of the numbers that the layers of a model have."""


@dataclass(frozen=True, slots=True)
class EmbeddingBits:
    """Chooses bits and codes for the rows of tables, where the recipe asks for it with ``embedding_bits``.

    A row is worth what its errors cost: how often it is read (counted, and smoothed so that rows that were never read
    are not starved), times how much an error of it moves the outputs (gradients), times the error that is left at
    every width. The bits that lose least within the budget are found row by row, and beside them the geometric
    clusters of the paper; the report has both. The mean row is taken off first, and codes are fitted in the metric of
    the gradients.

    Source: Chung et al., "Extremely Low Bit Transformer Quantization for On-Device Neural Machine Translation",
    Findings of EMNLP 2020, section 3.1. Beyond it: smoothing, sensitivity, the optimum, and vectors instead of signs.

    Attributes:
        codes: "product" (learned vectors of 8 numbers), "binary" (signs and factors) or "grid" (integers, the same
            bits for all rows); "auto" takes grids where all rows have 2, 4 or 8 bits, else vectors.
        allocation: "rows" (the optimum) or "clusters" (the paper's).
        max_error: share of the weighted power of the rows that may be lost; 0 goes by bytes.
        transform: mix the columns of vectors by a matrix where that saves more bytes than it takes, and where the
            product is little work against the layers of the model.
        measured: measure gradients with PyTorch; False takes errors of all columns and rows as alike.
    """

    name: ClassVar[str] = "embedding-bits"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    codes: str = "auto"
    allocation: str = "rows"
    max_error: float = 0.0
    transform: bool = True
    measured: bool = True

    def __post_init__(self) -> None:
        if self.codes not in CODES:
            raise UsageError(f"embedding-bits: codes {self.codes!r}; it must be one of {', '.join(CODES)}")
        if self.allocation not in ALLOCATIONS:
            raise UsageError(f"embedding-bits: allocation {self.allocation!r} is neither rows nor clusters")
        if not 0 <= self.max_error < 1:
            raise UsageError(f"embedding-bits: max_error is {self.max_error}; it is a share from 0 to below 1")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with codes for the rows of every table.

        Raises:
            UsageError: the target decodes no rows, the counts are of another vocabulary, or the budget is too small.
        """
        report = PassReport(name=self.name, changed=False, options={"codes": self.codes, "allocation": self.allocation})
        if context.recipe.embedding_bits is None:
            return PassResult(state, report)
        if LOWERING not in context.target.lower_passes():
            raise UsageError(
                f"target '{context.target.full_name}' decodes no rows of embeddings; leave --embedding-bits out"
            )
        tables, skipped = _chosen_tables(state, context)
        if not tables:
            none = "no constant of the model is looked up by rows, or all are too small"
            return PassResult(state, replace(report, skipped=skipped, notes=(none,)))
        counts = _counts(state, context, tables)
        measured, notes = self._measured(state, context, tables)
        numbers = sum(t.shape[0] * t.shape[1] for t in tables)
        work = _Work(self, context, numbers, _layer_numbers(state) if self.transform and _mixes(state) else 0)
        done = [work.decide(t, counts[t.name], measured.get(t.name)) for t in tables]
        searches = tuple(d.search for d in done if d.search is not None)
        plan = state.plan
        for table, decision in zip(tables, done, strict=True):
            plan = _decided(plan, table, decision)
        metrics = tuple(metric for decision in done for metric in decision.metrics)
        notes += tuple(note for decision in done for note in decision.notes)
        report = replace(report, changed=True, metrics=metrics, skipped=skipped, notes=notes)
        return PassResult(replace(state, plan=plan, row_searches=searches), report)

    def _measured(
        self, state: State, context: Context, tables: tuple[Table, ...]
    ) -> tuple[dict[str, LookupMetric], tuple[str, ...]]:
        if not self.measured or context.calibration is None:
            return {}, ("errors of all columns count alike: nothing was measured",)
        inner = {o.name for node in state.model.graph for o in node.outputs}
        places = {
            t.name: [(g.outputs[0].name or "", g.inputs[1].name or "") for g in t.gathers if g.inputs[1] is not None]
            for t in tables
            if all(g.outputs[0].name in inner for g in t.gathers)
        }
        context.progress("measuring embeddings", 0, 0)
        try:
            from qcompiler.executor.lookup_metric import lookup_metrics

            return lookup_metrics(state.model, places, context.calibration, context.recipe.seed), ()
        except ImportError:
            return {}, ("errors of all columns count alike: install torch to measure what they do to the outputs",)
        except ModelError as error:
            return {}, (f"errors of all columns count alike: {error}",)


@dataclass(frozen=True, slots=True, eq=False)
class _Decision:
    codes: RowCodes
    reason: str
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = ()
    search: RowSearch | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """The tables of one model, of which each gets its share of the bytes.

    Attributes:
        numbers: of all tables.
        layer_numbers: of the weights of layers, 0 where no table may have a transform.
    """

    options: EmbeddingBits
    context: Context
    numbers: int
    layer_numbers: int

    def decide(self, table: Table, counts: NDArray[np.float64], found: LookupMetric | None) -> _Decision:
        """Return the codes of a table.

        Raises:
            UsageError: its share of the budget is below the smallest size.
        """
        rows, columns = table.shape
        array = constant_of(table.value)
        share = smoothed_counts(counts)
        power = found.power if found is not None else np.zeros(rows)
        problem = RowProblem(
            np.asarray(array, np.float32),
            row_importance(share, power, found.readings if found is not None else np.zeros(rows)),
            found.metric if found is not None else np.eye(columns),
            RowKind.BINARY if self.options.codes == RowKind.BINARY else RowKind.PRODUCT,
            self.context.recipe.seed,
        )
        fewest, most = self.context.recipe.embedding_bits or (0, 0)
        if self._on_grid(columns, fewest, most):
            return self._grid(table, problem, most)

        def watch(number: int, total: int) -> None:
            self.context.progress(f"coding rows of {table.name}", number, total)

        if columns**2 <= TRANSFORM_WORK * self.layer_numbers:
            problem = with_transform(problem)
        search = RowSearch(table.name, candidates(problem, fewest, most, watch), _GRAPH_BYTES)
        return self._rows(table, problem, search)

    def _on_grid(self, columns: int, fewest: int, most: int) -> bool:
        fits = fewest == most and most in GRID_BITS and grid_block(columns) > 0
        if self.options.codes == RowKind.GRID and not fits:
            raise UsageError(
                "embedding-bits: a grid needs 2, 4 or 8 bits for all rows, and columns in multiples of 16; give "
                "--embedding-bits 4, or other codes"
            )
        return fits and self.options.codes in ("auto", RowKind.GRID)

    def _grid(self, table: Table, problem: RowProblem, bits: int) -> _Decision:
        codes = grid_codes(problem, bits)
        limit = self._budget(table, codes.stored_bytes, codes.stored_bytes) if self._asked() is not None else None
        if limit is not None and codes.stored_bytes > limit:
            raise UsageError(f"table '{table.name}' takes {codes.stored_bytes} bytes at {bits} bits, more than {limit}")
        return self._finished(table, problem, codes, f"{bits} bits a number on grids", ())

    def _rows(self, table: Table, problem: RowProblem, search: RowSearch) -> _Decision:
        found, budget = search.found, self._budget(table, search.smallest, search.largest)
        if self.options.max_error:
            best = fewest_bytes(found.losses, found.row_bytes, found.first, self.options.max_error * found.power)
            budget = best.row_bytes + search.fixed_bytes
        else:
            best = search.within(budget)
        rows_only = budget - search.fixed_bytes
        clusters = geometric_bits(problem.importance, found.losses, found.row_bytes, found.first, rows_only)
        chosen = best if self.options.allocation == "rows" else clusters
        notes = tuple(_described(search, name, a) for name, a in (("rows one by one", best), ("clusters", clusters)))
        if found.transform is not None:
            notes += (f"{table.name}: columns are mixed by a matrix of 4-bit integers, multiplied by the rows read",)
        done = self._finished(table, problem, found.codes(chosen.bits), search.describe(chosen.bits), notes)
        return replace(done, search=search if self._open() else None)

    def _open(self) -> bool:
        """Return True if nobody says how many bytes tables take, so that they may be traded for those of layers."""
        given = self._asked() is not None or self.options.max_error > 0
        return not given and self.options.allocation == "rows"

    def _finished(
        self, table: Table, problem: RowProblem, codes: RowCodes, reason: str, notes: tuple[str, ...]
    ) -> _Decision:
        lost = lost_share(problem, codes)
        metrics = (
            Metric(f"mean bits of {table.name}", round(float(codes.bits.mean()), 4), "bits"),
            Metric(f"stored of {table.name}", codes.stored_bytes, "bytes"),
            Metric(f"lost of {table.name}", float(f"{lost:.4g}"), "share of weighted power"),
        )
        return _Decision(codes, reason, metrics, notes)

    def _asked(self) -> int | None:
        return self.context.recipe.embedding_bytes

    def _budget(self, table: Table, smallest: int, largest: int) -> int:
        """Return the bytes that a table may take: its share of what was asked, else the middle of what is possible.

        Raises:
            UsageError: less than its smallest size.
        """
        asked, limit = self._asked(), self.context.recipe.floors.max_size_bytes
        share = table.shape[0] * table.shape[1] / self.numbers
        middle = (smallest + largest) // 2
        if asked is None:
            return middle if limit is None else max(smallest, min(middle, int(SIZE_SHARE * limit * share)))
        if int(asked * share) < smallest:
            fewest = (self.context.recipe.embedding_bits or (0, 0))[0]
            hint = "allow more bytes" if fewest == 0 else f"allow more bytes, or fewer bits than {fewest}"
            raise UsageError(
                f"--embedding-bytes {asked}: table '{table.name}' takes at least {smallest} of its share of "
                f"{int(asked * share)} bytes; {hint}"
            )
        return int(asked * share)


def _described(search: RowSearch, name: str, found: RowAllocation) -> str:
    """Return one allocation as a line of the report."""
    power, counts = search.found.power, np.bincount(found.bits)
    sizes = ", ".join(f"{count} rows of {bits} bits" for bits, count in enumerate(counts) if count)
    lost = f"{search.lost(found.bits):.4g} of the weighted power lost"
    text = f"{search.name}, {name}: {sizes}; {found.row_bytes} bytes, {lost}"
    if found.sizes or not power:
        return text
    return f"{text} (no allocation of so many bytes loses less than {max(found.bound, 0.0) / power:.4g})"


def _mixes(state: State) -> bool:
    """Return True if the model's operators can unpack a transform."""
    return state.model.opset_imports.get("", 1) >= MIN_OPSET


def _layer_numbers(state: State) -> int:
    """Return how many numbers the layers of a model have, which is how often they multiply for one position."""
    arrays = [
        constant_of(value)
        for node in state.model.graph
        if node.op_type != "Gather"
        for index in weight_operands(node)
        if (value := node.inputs[index]) is not None
    ]
    return sum(array.size for array in arrays if array is not None)


def _chosen_tables(state: State, context: Context) -> tuple[tuple[Table, ...], tuple[Skip, ...]]:
    tables, skipped = [], []
    for table in find_tables(state.model):
        rule = context.recipe.rule_of([table.name, *(g.name or "" for g in table.gathers)])
        if rule is not None and rule.keep_float:
            skipped.append(Skip(table.name, f'kept in float by [match."{rule.pattern}"]'))
        else:
            tables.append(table)
    return tuple(tables), tuple(skipped)


def _counts(state: State, context: Context, tables: tuple[Table, ...]) -> dict[str, NDArray[np.float64]]:
    """Return how often rows are read: from the file where it fits a table, else counted on the calibration samples."""
    file, samples = context.recipe.token_counts, context.calibration
    given = fitted_counts(read_counts(Path(file)), Path(file), tables) if file is not None else {}
    others = tuple(t for t in tables if t.name not in given)
    if samples is None:
        return {**{t.name: np.zeros(t.shape[0]) for t in others}, **given}
    return {**count_readings(state.model, others, samples), **given}


def _decided(plan: CompressionPlan, table: Table, decision: _Decision) -> CompressionPlan:
    """Return the plan with the codes of a table, and its readers placed."""
    entry = TensorPlan(
        name=table.name,
        role=Role.TABLE,
        rows=decision.codes,
        reason=decision.reason,
        decided_by=("place", EmbeddingBits.name),
    )
    looked_up = "decodes the rows that it looks up"
    nodes = [_placed(plan, g.name or "", Precision.WEIGHT_ONLY, looked_up) for g in table.gathers]
    shared = "multiplies by a table that is stored in rows; it is decoded when a session is loaded"
    nodes += [_placed(plan, n.name or "", Precision.FLOAT, shared) for n in table.others]
    return plan.with_tensors(entry).with_nodes(*(n for n in nodes if n is not None))


def _placed(plan: CompressionPlan, name: str, precision: Precision, reason: str) -> NodePlan | None:
    node = plan.nodes.get(name)
    if node is None:
        return None
    return replace(node, precision=precision, reason=reason, decided_by=(*node.decided_by, EmbeddingBits.name))
