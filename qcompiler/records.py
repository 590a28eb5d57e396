"""What happened, as data: pass reports, layer reports, latency profiles, verdicts. Rendering is in ``report``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qcompiler.counts import EmulatedRun


@dataclass(frozen=True, slots=True)
class Metric:
    """One named figure with its unit."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Skip:
    """A tensor or node that a pass left alone, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of a table: a name, a value per column (None where there is none) and a remark."""

    name: str
    values: tuple[float | None, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Figures of one kind by name and by column, such as an error per layer and solver."""

    title: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What one pass did."""

    name: str
    changed: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Latency of one model, measured on real hardware. An estimate is another type, never this one."""

    min_ms: float
    median_ms: float
    p90_ms: float
    runs: int
    warmup: int
    threads: int
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyComparison:
    """Original and result, interleaved in one process.

    ``spread`` is the half-width of the middle 80 % of the per-block ratios of minima.
    """

    original: LatencyProfile
    result: LatencyProfile
    ratio_min: float
    ratio_median: float
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """One output of the result against the same output of the original.

    Attributes:
        sqnr_db: 10 log10(signal power / error power) over all samples; None when both are identical.
        cosine: cosine similarity over all samples.
        max_abs: largest absolute difference.
        agreement: share of samples (0 to 1) with the same argmax; None where the output is not class scores.
    """

    name: str
    samples: int
    sqnr_db: float | None
    cosine: float
    max_abs: float
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricComparison:
    """The user's metric on original and result, on the same rows.

    For top1, values are percent; ``lost`` and ``gained`` count samples whose answer became wrong or right.
    """

    name: str
    original: float
    result: float
    samples: int
    lost: int | None = None
    gained: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """One limit of the gate. ``reached`` is None where it could not be measured; then ``held`` is None too."""

    name: str
    limit: float
    unit: str
    direction: Literal["at least", "at most"]
    asked_by: Literal["user", "default"]
    reached: float | None = None
    held: bool | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerShare:
    """What really runs in integers, read from the runtime's own optimized graph."""

    compute_nodes: int
    integer_nodes: int
    macs: int
    integer_macs: int
    float_nodes: tuple[str, ...] = ()
    runtime_ops: Mapping[str, int] = field(default_factory=dict)
    unfolded: tuple[str, ...] = ()
    """Nodes that only unpack stored weights, and that the runtime left in its graph, so that every run repeats them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLoad:
    """Loading one model in a process of its own: milliseconds of the fastest, and memory above the runtime's own."""

    ms: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """Everything the report says about one node of the original graph.

    Attributes:
        sqnr_db: quality of this node's output in the compiled model against the original, in dB.
        cause: the main reason for the error, or "". bytes_before / bytes_after: of this node's constants.
        weight_bits / weight_reason: width of its stored weights (None without any), and how their codes were found.
    """

    name: str
    op_type: str
    output: str
    precision: str
    runs_integer: bool | None
    decided_by: tuple[str, ...]
    reason: str
    bytes_before: int
    bytes_after: int
    sqnr_db: float | None = None
    weight_db: float | None = None
    clip: tuple[float, float] | None = None
    observed: tuple[float, float] | None = None
    cause: str = ""
    weight_bits: int | None = None
    weight_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Where the time goes: one original node, before and after, in microseconds per run."""

    name: str
    op_type: str
    before_us: float | None
    after_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHistogram:
    """A coarse histogram of one activation for the report, with the clip range that was chosen."""

    name: str
    low: float
    high: float
    counts: tuple[int, ...]
    clip: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStep:
    """One attempt of the repair loop."""

    action: str
    layers: tuple[str, ...]
    outcome: str


StageOutcome = Literal["verified", "floor missed", "better", "nothing to do", "not better", "gate missed", "failed"]
"""Of the first result: "verified" or "floor missed". Of a search: it was taken ("better"), or why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStage:
    """The first result, or one search for a better one.

    Attributes:
        before_db / after_db: closeness on the acceptance samples, in dB, of the best plan before and of what
            this stage found (see ``Trial.closeness``); None where it was not measured.
        reused: finished parts that were taken over from a search that was stopped.
        detail: why it was not taken, where there is more to say.
    """

    name: str
    outcome: StageOutcome
    before_db: float | None = None
    after_db: float | None = None
    seconds: float = 0.0
    reused: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How the search for better results went, and why it ended: it was done, or what cut it short."""

    ended: Literal["complete", "time", "memory", "interrupted"]
    stages: tuple[SearchStage, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDamage:
    """What one layer below 8 bits cost when a floor was missed, why, and what was done about it.

    Attributes:
        bits: width of its weights when the floor was missed.
        damage_db: what the SQNR on the acceptance samples gains when this layer alone has 8-bit weights.
    """

    name: str
    bits: int
    damage_db: float
    cause: str
    action: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One allocation of bits: bytes of the whole file, stored bits a weight, predicted loss."""

    file_bytes: int
    mean_bits: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """The choice between size and predicted loss, from one search.

    Attributes:
        points: bytes rising, loss falling; at most a few hundred, evenly spread, both ends among them.
        chosen: the point that was written.
        unit: what the loss is.
        correlation: Spearman's rank correlation of predicted and measured loss over ``checked`` runs.
    """

    points: tuple[FrontierPoint, ...]
    chosen: FrontierPoint
    unit: str
    correlation: float | None = None
    checked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found on the written file."""

    loaded: bool
    data: Literal["held-out samples", "synthetic inputs"]
    samples: int
    outputs: tuple[OutputComparison, ...] = ()
    metric: MetricComparison | None = None
    floors: tuple[Floor, ...] = ()
    integer: IntegerShare | None = None
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    latency: LatencyComparison | None = None
    latency_unavailable: str = ""
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    loads: Mapping[str, SessionLoad] = field(default_factory=dict)
    """"original" and "result" -> what it takes to load it; empty where that was not measured."""
    stored_bytes: Mapping[str, int] = field(default_factory=dict)
    """What the bytes of the model are spent on -> bytes, the largest part first."""
    executed_on: str = ""
    notes: tuple[str, ...] = ()
    failure: str = ""
    """Why the file could not be loaded or run at all, or runs otherwise on the target; "" if it runs."""
    emulated: tuple[EmulatedRun, ...] = ()
    """Runs on emulated boards, that of the target first; empty where none was asked for."""

    @property
    def accuracy_verified(self) -> bool:
        """True if real samples that calibration never saw were compared."""
        return self.loaded and self.data == "held-out samples"

    @property
    def held(self) -> bool:
        """True if the file loads and runs and no floor is missed."""
        return self.loaded and not self.failure and not self.missed

    @property
    def missed(self) -> tuple[Floor, ...]:
        """The floors that were missed; one that the user asked for and nobody could measure counts."""
        return tuple(f for f in self.floors if f.held is False or (f.held is None and f.asked_by == "user"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The original model, as the report states it."""

    file_name: str
    sha256: str
    file_bytes: int
    opset: int
    ir_version: int
    producer: str
    nodes: int
    parameters: int
    inputs: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(name, dtype, dimensions) of every input; an unknown dimension is its symbol or "?"."""
    outputs: tuple[tuple[str, str, tuple[str, ...]], ...]
    already_quantized: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Which samples did what. Index lists are disjoint."""

    source: str
    fingerprint: str
    samples: int
    calibration: tuple[int, ...]
    acceptance: tuple[int, ...]
    verification: tuple[int, ...]
    labels: str = ""
    preprocessing: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """Everything one compilation for one target found out; ``report`` turns it into JSON, text and HTML.

    Whatever differs between two runs of the same inputs, seed and versions (times, memory, machine) is in
    ``LatencyProfile``, ``LayerTime``, ``memory_bytes``, ``seconds``, ``search`` and ``machine``; the JSON keeps all of
    that under one key, ``measured``.
    """

    versions: Mapping[str, str]
    command: tuple[str, ...]
    recipe: Mapping[str, Any]
    target: str
    target_summary: str
    model: ModelFacts
    data: DataFacts | None
    passes: tuple[PassReport, ...]
    layers: tuple[LayerReport, ...]
    histograms: tuple[TensorHistogram, ...]
    repairs: tuple[RepairStep, ...]
    verdict: Verdict
    choices: Mapping[str, str]
    card: Mapping[str, str]
    """The quantization card: field name -> answer, in the order of the card."""
    layer_times: tuple[LayerTime, ...] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    frontier: Frontier | None = None  # none where no widths were chosen
    damages: tuple[LayerDamage, ...] = ()
    """Layers below 8 bits that do most damage, worst first; with repairs, as it was before the first of them."""
    machine: str = ""
    search: Search | None = None
    """None where no search for better results was asked for or made."""
