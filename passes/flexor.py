"""flexor: weights of a fraction of a bit, behind an XOR network that makes their bits of fewer stored ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qcompiler.codec.xor_weights import LEAST_BITS, MOST_BITS, XorRate
from qcompiler.errors import UsageError
from qcompiler.layer_problems import PlannedWeight, gram_matrices, planned_weights, row_floor
from qcompiler.lowering import weight_codes
from qcompiler.plan import TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.gram import damped
from qcompiler.quant.grid import power_ratio_db
from qcompiler.quant.levels import uniform_levels
from qcompiler.quant.solvers.code_words import Slices, best_words
from qcompiler.quant.solvers.problem import LayerProblem, Solution, output_error, output_power
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.runtime.grams import POSITIONS, GramOptions
from qcompiler.state import Context, Fact, State

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flexor:
    """Gives weights of one bit codes that an XOR network makes of fewer bits: those nearest to the layer's output.

    What the network can make are words of ``qcompiler.codec.xor_weights``. Every slice of a weight takes the word
    with the least error of the layer's output, all others fixed, from the words nearest to the weights on
    (``qcompiler.quant.solvers.code_words``). ``fine-tune`` trains the stored bits from there.

    Without ``--bits`` of a fraction of a bit nothing is done. Weights to which a rule gives other bits keep them.

    Attributes:
        bits: stored bits a weight, 0.1 to 1; 0 takes the recipe's.
        positions: input columns per layer.
    """

    name: ClassVar[str] = "flexor"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT, Fact.WEIGHT_SCALES})
    provides: ClassVar[frozenset[Fact]] = frozenset()
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    bits: float = 0.0
    positions: int = POSITIONS

    def __post_init__(self) -> None:
        if self.bits and not LEAST_BITS <= self.bits <= MOST_BITS:
            raise UsageError(f"flexor: bits is {self.bits:g}; it must be {LEAST_BITS:g} to {MOST_BITS:g}")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with code words for every weight of one bit.

        Raises:
            DataError: the model does not run on a sample.
        """
        bits = self.bits or context.recipe.xor_bits
        weights = planned_weights(state, range(1, 2)) if bits is not None else []
        if bits is None or not weights:
            return PassResult(state, PassReport(name=self.name, changed=False))
        rate = XorRate.of_bits(bits)
        with threadpool_limits(context.recipe.threads):  # sums of other threads would round otherwise
            return self._coded(state, context, weights, rate)

    def _coded(self, state: State, context: Context, weights: Sequence[PlannedWeight], rate: XorRate) -> PassResult:
        grams = self._grams(state, context, weights)
        done: list[TensorPlan] = []
        rows: list[TableRow] = []
        skipped: list[Skip] = []
        for number, weight in enumerate(weights):
            context.progress("choosing code words", number, len(weights))
            name = weight.entry.name
            gram = grams.get(name)
            if gram is None:
                skipped.append(Skip(name, f"nearest code words: {weight.refusal or 'there are no samples'}"))
            entry, levels = _coded_weight(state, weight, gram, rate)
            done.append(entry)
            rows.append(TableRow(name, levels, rate.name))
        title = "SQNR of each layer's output, or of its weight where there are no samples"
        report = PassReport(
            name=self.name,
            changed=True,
            options={"bits": rate.bits},
            metrics=(Metric("coded", len(done), "weights"), Metric("stored bits", round(rate.bits, 4), "a weight")),
            skipped=tuple(skipped),
            tables=(Table(title, "dB", ("one bit", "nearest words", "best words"), tuple(rows)),),
        )
        return PassResult(replace(state, plan=state.plan.with_tensors(*done).signed(self.name, state.plan)), report)

    def _grams(self, state: State, context: Context, weights: Sequence[PlannedWeight]) -> Mapping[str, Float64]:
        """Return H of every weight that has one, damped."""
        if context.calibration is None:
            return {}
        options = GramOptions(
            threads=context.recipe.threads,
            positions=self.positions,
            seed=context.recipe.seed,
            progress=lambda done, total: context.progress("moments for code words", done, total),
        )
        return {k: damped(v) for k, v in gram_matrices(state, weights, context.calibration, options).items()}


def _coded_weight(
    state: State, weight: PlannedWeight, gram: Float64 | None, rate: XorRate
) -> tuple[TensorPlan, tuple[float | None, ...]]:
    """Return the plan of a weight in code words, and the SQNR in dB of one bit, the nearest and the best words."""
    entry, rows = weight.entry, weight.rows()
    levels = entry.levels if entry.levels is not None and entry.levels.size == 2 else uniform_levels(1)
    moment = np.ones((rows.shape[0], 1, 1)) * np.eye(rows.shape[2]) if gram is None else gram
    scale = np.broadcast_to(np.asarray(entry.scale, np.float64).reshape(-1), (rows[..., 0].size,))
    problem = LayerProblem(
        weight=rows,
        gram=moment,
        levels=levels,
        scale=scale.reshape(rows.shape[:2]).copy(),
        floor=row_floor(state, weight),
    )
    order = weight.shaped(np.arange(rows.size).reshape(rows.shape)).reshape(-1)
    places = np.argsort(order)
    planned = weight_codes(weight.array, entry).reshape(-1)[places].reshape(rows.shape)
    nearest = _nearest(problem, rate, order)
    best = best_words(problem, nearest, Slices(rate.words, order))
    power = output_power(rows, moment)
    found = (Solution(planned, problem.scale), nearest, best)
    reached = tuple(power_ratio_db(power, output_error(rows, s, moment)) for s in found)
    kept = weight.scale(best.scale)
    reach = float(kept.max()) * float(np.abs(levels.astype(np.float64)).max())
    coded = replace(
        entry,
        codes=weight.shaped(best.codes),
        scale=kept,
        zero_point=np.zeros(kept.shape, np.int32),
        levels=levels,
        encoding=rate.name,
        clip=(-reach, reach),
        error_db=None,
        reason=f"{rate.bits:.3g} stored bits a weight: code words by the error of the "
        + ("weight" if gram is None else "layer's output"),
    )
    return coded, reached


def _nearest(problem: LayerProblem, rate: XorRate, order: NDArray[np.int64]) -> Solution:
    """Return the words nearest to the weights, each weight's error by the power of the input that it multiplies."""
    low, high = (float(level) for level in problem.levels)
    scale = problem.scale[:, :, None]
    power = np.einsum("gii->gi", problem.gram)[:, None, :]
    costs = power * ((problem.weight - high * scale) ** 2 - (problem.weight - low * scale) ** 2)
    unit = max(float(np.abs(costs).mean()), np.finfo(np.float32).tiny)
    flat = (costs.reshape(-1)[order] / unit).astype(np.float32)
    bits = np.empty(flat.size, np.uint8)
    bits[order] = rate.bits_of(rate.nearest(rate.sliced(flat)), flat.size)
    return Solution(problem.levels[bits].reshape(problem.weight.shape), problem.scale)
