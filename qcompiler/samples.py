"""Which samples calibrate, accept and verify: from the recipe's data or, without any, synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import (
    MAX_ACCEPTANCE,
    Dataset,
    Subset,
    check_outputs,
    input_specs,
    load_labels,
    open_dataset,
    split,
    synthetic_inputs,
)
from qcompiler.errors import DataError, UsageError
from qcompiler.recipe import Recipe
from qcompiler.records import DataFacts
from qcompiler.runtime.optimized import COMPUTE_OPS, node_macs

VERIFY_MACS = 40e9
"""What the gate may compute on each model: large models are verified on fewer samples."""
MIN_VERIFY_SAMPLES = 16
SYNTHETIC_SAMPLES = 8
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
ACCEPTANCE_MACS = 6e9
MIN_ACCEPTANCE = 8
"""What one trial of a search may compute, and the fewest samples that decide one."""
TRAINED_ACCEPTANCE, TRAINED_TRIALS = 96, 4
"""With training, the most samples that decide, and what a trial may compute in units of the above. There are few trials
then, and training is good enough at fitting itself to samples that a few dozen cannot tell whether it helps."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """The samples of one compilation.

    Attributes:
        calibration / acceptance: None without data.
        verification: held-out samples, or synthetic inputs without data.
        probe: two samples on which rewrites are checked.
        labels: int64, one per row of ``verification``; None without labels.
        facts: for the report; None without data.
    """

    calibration: Dataset | None
    acceptance: Dataset | None
    verification: Dataset
    probe: Dataset
    labels: NDArray[np.int64] | None
    facts: DataFacts | None


def prepare_samples(model: ir.Model, recipe: Recipe) -> Samples:
    """Return the samples that a recipe asks for, split into disjoint sets.

    Raises:
        DataError: they do not fit the model, or there are too few.
        UsageError: labels or fine-tuning without data.
    """
    check_outputs(model)
    specs = input_specs(model)
    if recipe.data is None:
        _refuse_without_data(recipe)
        made = synthetic_inputs(specs, SYNTHETIC_SAMPLES, recipe.seed)
        probe = Subset(made, (0, 1))
        return Samples(calibration=None, acceptance=None, verification=made, probe=probe, labels=None, facts=None)
    data = open_dataset(recipe.data, specs, recipe.image)
    labels = load_labels(recipe.labels, data) if recipe.labels is not None else None
    macs = model_macs(model)
    verify = min(recipe.verify_samples, max(MIN_VERIFY_SAMPLES, int(VERIFY_MACS / max(macs, 1))))
    trained = recipe.fine_tune_minutes > 0
    most = TRAINED_ACCEPTANCE if trained else MAX_ACCEPTANCE
    parts = split(len(data), recipe.calibration_samples, verify, recipe.seed, most)
    few = max(MIN_ACCEPTANCE, int((TRAINED_TRIALS if trained else 1) * ACCEPTANCE_MACS / max(macs, 1)))
    accepted, spare = parts.acceptance[:few], parts.acceptance[few:]
    calibrated = tuple(sorted((*parts.calibration, *spare)))
    notes = list(data.notes)
    if len(parts.verification) == verify < recipe.verify_samples:
        notes.append(f"verified on {verify} samples: the model is large, and the gate's time is bounded")
    facts = DataFacts(
        source=data.source,
        fingerprint=data.fingerprint,
        samples=len(data),
        calibration=calibrated,
        acceptance=accepted,
        verification=parts.verification,
        labels=_labels_name(recipe),
        preprocessing=data.preprocessing,
        notes=tuple(notes),
    )
    return Samples(
        calibration=Subset(data, calibrated),
        acceptance=Subset(data, accepted),
        verification=Subset(data, parts.verification),
        probe=Subset(data, calibrated[:2]),
        labels=None if labels is None else labels[list(parts.verification)].reshape(-1),
        facts=facts,
    )


def _refuse_without_data(recipe: Recipe) -> None:
    if recipe.labels is not None:
        raise UsageError("labels without data: give --data too, or leave --labels out")
    if recipe.fine_tune_minutes:
        raise UsageError("fine-tuning without data: give --data too, or leave --fine-tune out")


def _labels_name(recipe: Recipe) -> str:
    return recipe.labels.replace("\\", "/").rpartition("/")[2] if recipe.labels else ""


def model_macs(model: ir.Model) -> int:
    """Return the multiply-accumulates of one run; unknown dimensions count as 1."""
    return sum(node_macs(n) for n in model.graph.all_nodes() if n.op_type in COMPUTE_OPS)


def class_outputs(model: ir.Model, labels: NDArray[np.int64] | None) -> frozenset[str]:
    """Return the outputs that hold class scores, so that their argmax is an answer.

    These are float outputs of shape (batch, classes) with at least two classes that end in a Softmax, that are
    the only output of a network with a classifier's ending (Gemm, MatMul, pooling), or any such output when
    there are labels.

    Raises:
        DataError: a label is beyond the classes of every output.
    """
    wide = {v.name or "": v for v in model.graph.outputs if _classes(v) > 1}
    if labels is not None:
        largest = int(labels.max(initial=0))
        found = frozenset(n for n, v in wide.items() if largest < _classes(v))
        if wide and not found:
            raise DataError(f"label {largest} is beyond the classes of every output; check --labels")
        return found
    return frozenset(n for n, v in wide.items() if _ends_in_scores(v, alone=len(model.graph.outputs) == 1))


def distributions(model: ir.Model) -> frozenset[str]:
    """Return the outputs that stand for probabilities, to be compared as such by searches.

    Beside class scores these are float outputs of shape (batch, ..., classes) that a Softmax over the last axis makes,
    such as those of a model that predicts every token of a sentence.
    """
    several = frozenset(v.name or "" for v in model.graph.outputs if _holds_distributions(v))
    return class_outputs(model, None) | several


def _holds_distributions(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type not in ("Softmax", "LogSoftmax") or value.shape is None or len(value.shape) < 3:
        return False
    # The default axis was 1 before opset 13; what does not name the last one is left out rather than guessed.
    axis, classes = node.attributes.get_int("axis", 1), value.shape[-1]
    return axis in (-1, len(value.shape) - 1) and isinstance(classes, int) and classes > 1


def _classes(value: ir.Value) -> int:
    """Return the columns of a float output of shape (batch, columns), 0 for any other output."""
    if value.shape is None or len(value.shape) != 2 or value.dtype not in FLOATS:
        return 0
    columns = value.shape[1]
    return columns if isinstance(columns, int) else 0


def _ends_in_scores(value: ir.Value, *, alone: bool) -> bool:
    node = value.producer()
    while node is not None:
        if node.op_type in ("Softmax", "LogSoftmax"):
            return True
        if node.op_type in ("Gemm", "MatMul", "GlobalAveragePool"):
            return alone
        if node.op_type not in (
            "Add",
            "Flatten",
            "Reshape",
            "Squeeze",
            "Identity",
            "Cast",
            "DequantizeLinear",
        ):
            return False
        first = node.inputs[0] if node.inputs else None
        node = first.producer() if first is not None else None
    return False
