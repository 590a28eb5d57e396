"""What searches judge by before the gate does: accuracy on samples that are not the gate's, and the file's size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset, Subset
from qcompiler.errors import DataError, RuntimeUnavailable
from qcompiler.gate.floors import MAX_DROP_POINTS, MIN_AGREEMENT, MIN_SQNR_DB
from qcompiler.mixed_precision.divergence import log_softmax
from qcompiler.model.measured import measured_values
from qcompiler.model.save import to_proto
from qcompiler.pipeline import Pipeline
from qcompiler.quant.grid import power_ratio_db
from qcompiler.registry import make_pass
from qcompiler.runtime.capture import Executor
from qcompiler.samples import Samples, class_outputs, model_macs
from qcompiler.state import Context, Fact, State, no_progress
from qcompiler.trials.trial import Trial

WORK_MACS = 25e9
MOST_ROWS = 64
"""What one check of the floors may compute, and the most samples it runs."""
MARGIN_DB = 1.0
"""SQNR floors are aimed at from above: the gate sees other samples."""

SIZING: tuple[tuple[Fact, str], ...] = (
    (Fact.PLACEMENT, "place"),
    (Fact.WEIGHT_SCALES, "scale-weights{rounding=nearest}"),
    (Fact.RANGES, "calibrate{method=minmax}"),
)


def with_judges(context: Context, model: ir.Model, samples: Samples) -> Context:
    """Return a context whose ``size`` answers, and where there is data and a search its judges of accuracy too.

    Args:
        context: of a compilation.
        model: the float model.
        samples: of the compilation; the gate's are not looked at.
    """
    context = replace(context, size=FileSize(context))
    searching = context.recipe.effort > 0 and (context.recipe.replay is None or context.recipe.fine_tune_minutes > 0)
    if samples.acceptance is None or samples.calibration is None or not searching:
        return context
    trial = Trial(model, context.target, samples.acceptance, context)
    return replace(
        context,
        trial=trial,
        closeness=trial.closeness,
        acceptable=FloorCheck(model, _judged(model, samples.acceptance, samples.calibration), context),
    )


def _judged(model: ir.Model, accepted: Dataset, calibrated: Dataset) -> Dataset:
    """Return acceptance samples, filled up with calibration samples to as many as the work allows."""
    count = min(MOST_ROWS, max(len(accepted), int(WORK_MACS / max(model_macs(model), 1))))
    spare = min(max(count - len(accepted), 0), len(calibrated))
    places = np.linspace(0, len(calibrated) - 1, spare).round().astype(int)
    return _Joined(accepted, Subset(calibrated, tuple(int(i) for i in places)))


class _Joined:
    """Two datasets, one behind the other."""

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self._first, self._second = first, second
        self.source, self.fingerprint = first.source, first.fingerprint
        self.preprocessing, self.notes = first.preprocessing, first.notes
        self.rows_per_sample, self.row_names = first.rows_per_sample, ()

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int, /) -> dict[str, NDArray[np.generic]]:
        return self._first[index] if index < len(self._first) else self._second[index - len(self._first)]


class FileSize:
    """Finishes a state in the quickest way that gives a file of the final size, and measures that file.

    Args:
        context: of the compilation.
    """

    def __init__(self, context: Context) -> None:
        self._context = replace(context, progress=no_progress)

    def __call__(self, state: State) -> int:
        """Return the bytes of the lowered model."""
        names = [name for fact, name in SIZING if fact not in state.facts]
        steps = Pipeline(tuple(make_pass(n) for n in (*names, *self._context.target.lower_passes())), check=False)
        return int(to_proto(steps.run(state, self._context)[0].model).ByteSize())


class FloorCheck:
    """Whether a state, finished in the plainest way, would hold the floors on accuracy.

    The loss of top-1 is estimated without labels: where the answer changes, by how much less probable the float
    model finds the new one. That is exact in the mean if the float model's probabilities are right.

    Args:
        model: the float model.
        samples: what it is judged on; made without looking at the gate's samples.
        context: of the compilation.
    """

    def __init__(self, model: ir.Model, samples: Dataset, context: Context) -> None:
        self._model, self._samples, self._context = model, samples, context
        classes = class_outputs(model, None)
        floats = [v for v in model.graph.outputs if v.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)]
        self._scored = [(v.name or "") in classes for v in floats]
        self._trial: Trial | None = None
        self._expected: list[list[NDArray[np.float64]]] = []

    def __call__(self, state: State) -> bool:
        """Return True if every floor on accuracy would hold."""
        if self._trial is None:
            self._trial = Trial(self._model, self._context.target, self._samples, self._context)
            self._expected = self._outputs(self._model)
        try:
            found = self._outputs(self._trial.lowered(state))
        except (RuntimeUnavailable, DataError):
            return False
        return all(
            self._holds(scored, [row[i] for row in self._expected], [row[i] for row in found])
            for i, scored in enumerate(self._scored)
        )

    def _outputs(self, model: ir.Model) -> list[list[NDArray[np.float64]]]:
        names = measured_values(model)
        executor = Executor(model, names, self._context.recipe.threads)
        runs = (executor.run(self._samples[i]) for i in range(len(self._samples)))
        return [[np.asarray(found[n], np.float64) for n in names] for found in runs]

    def _holds(self, scored: bool, expected: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> bool:
        recipe, floors = self._context.recipe, self._context.recipe.floors
        if any(
            a.shape != b.shape or not np.isfinite(b[np.isfinite(a)]).all() for a, b in zip(expected, found, strict=True)
        ):
            return False
        if floors.min_sqnr_db is not None or not scored:
            limit = MIN_SQNR_DB if floors.min_sqnr_db is None else floors.min_sqnr_db
            if sqnr_db(expected, found) < limit + MARGIN_DB:
                return False
        if recipe.metric == "cosine" and floors.max_drop is not None:
            return 1.0 - cosine(expected, found) <= floors.max_drop
        if not scored:
            return True
        labelled = recipe.labels is not None and recipe.metric in ("auto", "top1")
        if floors.min_agreement is not None or not labelled:
            wanted = MIN_AGREEMENT if floors.min_agreement is None else floors.min_agreement
            if agreement(expected, found) < wanted:
                return False
        drop = floors.max_drop if floors.max_drop is not None else MAX_DROP_POINTS
        return not labelled or expected_drop(expected, found) <= drop


def expected_drop(expected: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> float:
    """Return the expected loss of top-1 in points, at least 0, if the float model's probabilities are right.

    Args:
        expected: logits of the float model, float64 (rows, classes) a sample.
        found: the same of the changed model.
    """
    truth = np.exp(log_softmax(np.concatenate(expected)))
    answers = np.concatenate(found).argmax(-1)
    kept = np.take_along_axis(truth, answers[:, None], axis=-1)[:, 0]
    return 100.0 * float(np.mean(truth.max(-1) - kept))


def agreement(expected: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> float:
    """Return the share of rows with the same answer; arguments as for ``expected_drop``."""
    pairs = zip(expected, found, strict=True)
    return float(np.mean(np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs])))


def sqnr_db(expected: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> float:
    """Return the SQNR over all samples in dB, infinity where nothing differs."""
    signal = sum(float(np.sum(a[np.isfinite(a)] ** 2)) for a in expected)
    pairs = list(zip(expected, found, strict=True))
    error = sum(float(np.sum((a[np.isfinite(a)] - b[np.isfinite(a)]) ** 2)) for a, b in pairs)
    level = power_ratio_db(signal, error)
    return float("inf") if level is None else level


def cosine(expected: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> float:
    """Return the cosine similarity over all samples."""
    a, b = (np.concatenate([x.reshape(-1) for x in part]) for part in (expected, found))
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300))
