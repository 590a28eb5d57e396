"""The quantization card: 27 fields that state every choice which changes results.

Source: "Confounding Tradeoffs for Neural Network Quantization" (arXiv 2102.06366), whose experiments vary
these choices. Differs: every answer is read from the plan, the recipe and the gate, none is written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qcompiler.plan import CompressionPlan
from qcompiler.recipe import Recipe
from qcompiler.records import DataFacts, ModelFacts, PassReport, Verdict
from qcompiler.report.digest import integer_phrase, stored_phrase, written_files
from qcompiler.report.plan_facts import PlanFacts, pass_text, trainings
from qcompiler.report.words import by_kind, bytes_text, count, printable

CARD_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Weights": (
        "Weight bits",
        "Weight granularity",
        "Weight symmetry",
        "Weight clipping",
        "Weight bias and variance correction",
        "Bit assignment",
    ),
    "Activations": (
        "Activation bits",
        "Activation symmetry",
        "Activation observer",
        "Activation granularity",
        "Before or after the activation function",
        "Which tensors are quantized",
        "Operators beside matrix products",
        "Activation memory accounting",
    ),
    "Layers left out": ("First and last layer", "Shortcut and downsample layers", "BatchNorm folding"),
    "Data and compute": (
        "Number of samples",
        "Labels",
        "Fine-tuning",
        "Augmentation and data split",
        "Seeds and repeats",
    ),
    "Reference": (
        "Checkpoint and float accuracy",
        "Metric and preprocessing",
        "Integer execution",
        "Compression ratio",
    ),
    "Search": ("Tuned hyper-parameters",),
}
"""Group -> names of its fields, in the order of the card."""

CARD_FIELDS: tuple[str, ...] = tuple(name for names in CARD_GROUPS.values() for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardInputs:
    """What the card is read from.

    Attributes:
        recipe: what was asked.
        target: full name of the target, such as ``arm:cortex-a76``.
        plan: what was decided.
        model: the original model.
        data: the samples; None without data.
        passes: what every pass did, in order.
        verdict: what the gate found.
        order: node names in graph order; empty where the plan's nodes are in that order already
            (a plan that was read from a folder is sorted by name).
        mean_bits: mean width of the weights whose width was chosen; None where none was.
    """

    recipe: Recipe
    target: str
    plan: CompressionPlan
    model: ModelFacts
    data: DataFacts | None
    passes: Sequence[PassReport]
    verdict: Verdict
    order: tuple[str, ...] = ()
    mean_bits: float | None = None


def quantization_card(inputs: CardInputs) -> dict[str, str]:
    """Return the card: field name -> answer, in the order of the card; no answer is ever empty."""
    plan = _in_graph_order(inputs.plan, inputs.order)
    facts = PlanFacts(plan, tuple(inputs.passes), inputs.recipe, inputs.mean_bits)
    answers: tuple[str, ...] = (
        facts.weight_bits(),
        facts.weight_granularity(),
        facts.weight_symmetry(),
        facts.weight_clipping(),
        facts.weight_correction(),
        facts.bit_assignment(),
        facts.activation_bits(),
        facts.activation_symmetry(),
        facts.activation_observer(),
        facts.activation_granularity(),
        facts.rectifiers(),
        facts.which_tensors(),
        facts.other_operators(),
        _memory(inputs),
        facts.first_and_last(),
        facts.shortcuts(),
        facts.batch_norm(),
        _samples(inputs),
        _labels(inputs),
        facts.fine_tuning(),
        _split(inputs),
        _seeds(inputs),
        _checkpoint(inputs),
        _metric(inputs),
        _execution(inputs),
        _ratio(inputs),
        _search(inputs),
    )
    return dict(zip(CARD_FIELDS, answers, strict=True))


def _in_graph_order(plan: CompressionPlan, order: tuple[str, ...]) -> CompressionPlan:
    if not order:
        return plan
    first = {name: plan.nodes[name] for name in order if name in plan.nodes}
    return replace(plan, nodes={**first, **{k: v for k, v in plan.nodes.items() if k not in first}})


def _memory(inputs: CardInputs) -> str:
    text = "Not accounted as a mean width: activations are not stored."
    if inputs.verdict.memory_bytes:
        return f"{text} The report gives the peak memory of the running model instead, under measured."
    return f"{text} The peak memory of the running model was not measured."


def _samples(inputs: CardInputs) -> str:
    data, verdict = inputs.data, inputs.verdict
    if data is None:
        return f"None to calibrate, none to train: no data was given; compared on {_compared(verdict)}."
    trained = "the same to train" if trainings(inputs.passes) else "0 to train"
    return (
        f"{len(data.calibration):,} to calibrate, {trained}, {len(data.acceptance):,} to accept a search, "
        f"of {data.samples:,}; compared on {_compared(verdict)}."
    )


def _compared(verdict: Verdict) -> str:
    return count(verdict.samples, verdict.data.removesuffix("s"))


def _labels(inputs: CardInputs) -> str:
    if inputs.data is None:
        return "Does not apply: no data was given."
    if not inputs.data.labels:
        return "None were given: the original model's own outputs are the reference."
    return f"Real labels, from {printable(inputs.data.labels)}; used to measure the metric, never to calibrate."


def _split(inputs: CardInputs) -> str:
    data = inputs.data
    if data is None:
        return "Does not apply: no data was given."
    trained = [(p.name, p.options) for p in trainings(inputs.passes)]
    varied = [name for name, how in trained if how.get("augment") == "true" or how.get("copies", 1) != 1]
    augmented = f"Floating-point samples are varied in {', '.join(varied)}" if varied else "No augmentation"
    return (
        f"{augmented}. Drawn from {printable(data.source)} (fingerprint {printable(data.fingerprint)}); "
        f"the {len(data.calibration):,} calibration, {len(data.acceptance):,} acceptance and "
        f"{len(data.verification):,} verification samples are disjoint."
    )


def _seeds(inputs: CardInputs) -> str:
    limited = inputs.recipe.max_time_s is not None or inputs.recipe.max_memory_bytes is not None
    unless = ", unless a limit on time or memory cuts a search short" if limited else ""
    return f"Seed {inputs.recipe.seed}; not repeated: equal inputs, seed and versions give equal bytes{unless}."


def _checkpoint(inputs: CardInputs) -> str:
    model, metric = inputs.model, inputs.verdict.metric
    name = f"{printable(model.file_name)}, SHA-256 {printable(model.sha256)}"
    if metric is None:
        return f"{name}; its accuracy was not measured: {_no_metric(inputs)}."
    samples = count(metric.samples, "verification sample")
    return f"{name}; {printable(metric.name)} {metric.original:.6g} on {samples}."


def _no_metric(inputs: CardInputs) -> str:
    if inputs.verdict.failure:
        return "the result could not be run"
    if inputs.data is None:
        return "no data was given"
    return "no labels were given" if not inputs.data.labels else "no metric was computed"


def _metric(inputs: CardInputs) -> str:
    metric, data = inputs.verdict.metric, inputs.data
    asked = f"asked: {printable(inputs.recipe.metric)}"
    name = f"{printable(metric.name)} on {count(metric.samples, 'sample')}" if metric else "SQNR against the original"
    if data is None:
        return f"{name} ({asked}); synthetic inputs, so no preprocessing."
    steps = printable(data.preprocessing) or "none, arrays are used as given"
    return f"{name} ({asked}). Preprocessing: {steps}."


def _execution(inputs: CardInputs) -> str:
    verdict = inputs.verdict
    if verdict.integer is None:
        why = printable(verdict.failure) or "the runtime's optimized graph was not available"
        return f"Not read: {why}."
    ops = ", ".join(f"{printable(k)} {v:,}" for k, v in sorted(verdict.integer.runtime_ops.items()))
    listed = f" Its operators: {ops}." if ops else ""
    where = f" Target {printable(inputs.target)}: {printable(verdict.executed_on)}." if verdict.executed_on else ""
    text = f"Executed by the runtime, not simulated: {integer_phrase(verdict)}."
    if verdict.integer.integer_nodes:
        text += " Sums in 32-bit integers, float scales, rounding half to even (ONNX)."
    return f"{text}{listed}{where}"


def _ratio(inputs: CardInputs) -> str:
    rule = (
        "File size on disk, external data included, over that of the original: weights, scales, zero points, "
        "biases, embeddings and graph all count"
    )
    files = ", ".join(f"{printable(k)} {bytes_text(v)}" for k, v in written_files(inputs.verdict).items())
    found = files or "no file was kept"
    parts = f" The model's bytes: {stored_phrase(inputs.verdict)}." if inputs.verdict.stored_bytes else ""
    return f"{rule}; an .ort copy is listed apart. Original {bytes_text(inputs.model.file_bytes)}; {found}.{parts}"


def _search(inputs: CardInputs) -> str:
    recipe, choices = inputs.recipe, inputs.plan.choices
    if recipe.replay:
        trained = ", and its weights were trained further" if recipe.fine_tune_minutes else ""
        return f"None in this run: the plan of {printable(recipe.replay)} was lowered again{trained}."
    if recipe.effort == 0:
        return "None: effort 0 calibrates without any search."
    ran = ", ".join(pass_text(p) for p in inputs.passes if p.changed) or "no pass changed anything"
    used = "synthetic inputs"
    if inputs.data is not None:
        used = f"{count(len(inputs.data.acceptance), 'acceptance sample')} (never those it is verified with)"
    names = printable(", ".join(by_kind(choices)))
    measured = f"; {count(len(choices), 'choice')} by measurement: {names}" if choices else ""
    return f"At effort {recipe.effort}, per network, judged on {used}. Passes: {ran}{measured}."
