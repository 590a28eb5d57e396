"""Scores .onnx files against the float original with ONNX Runtime and nothing else.

Nothing here knows who wrote a file: all are loaded, run and timed the same way. Sessions use one thread, and
latencies are ratios of runs interleaved in one process, because absolute times drift with the machine's load.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.readers import Array, Arrays

FLOAT_OPS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
INTEGER_OPS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)

_ROUND_SECONDS = 0.01
_SETTLED_ROUNDS = 80
_SETTLED_FALL = 0.99
_LATENCY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """Latency of one session over that of the float original: one sample, one thread.

    Attributes:
        minimum: ratio of the shortest runs.
        spread: difference of that ratio between the even and the odd rounds: how far it can be trusted.
        median: ratio of the median runs; it depends on what else the machine did.
    """

    minimum: float
    spread: float
    median: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How close one file's outputs are to the float original's.

    Attributes:
        sqnr_db: signal-to-noise ratio of each output in dB, over all scoring samples; inf if identical.
        agreement: share of samples with the same largest class; None if the output is no class vector.
        accuracy: share of samples whose largest class is the label; None without labels.
    """

    sqnr_db: dict[str, float]
    agreement: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """How one file compares with the float original.

    Attributes:
        fidelity: closeness of the outputs.
        float_ops: convolutions and matrix products that ONNX Runtime executes in floating point.
        integer_ops: those that it executes in integers.
        file_bytes: size of the model with its external data.
        latency: ratio to the float original.
    """

    fidelity: Fidelity
    float_ops: int
    integer_ops: int
    file_bytes: int
    latency: LatencyRatio

    @property
    def sqnr_db(self) -> dict[str, float]:
        """Return the signal-to-noise ratio of each output in dB."""
        return self.fidelity.sqnr_db


def open_session(model: Path) -> ort.InferenceSession:
    """Open a model on the CPU with one thread."""
    return ort.InferenceSession(model, _options(), providers=["CPUExecutionProvider"])


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised anyway, and warnings would drown the progress lines
    return options


def incompatibility(original: Path, candidate: Path, feed: Arrays) -> str:
    """Return why a file cannot stand in for the original, or "" if it takes the feed and has its outputs."""
    names = [output.name for output in open_session(original).get_outputs()]
    try:
        open_session(candidate).run(names, feed)
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        return f"does not run: {str(error).splitlines()[0]}"
    return ""


def feeds(samples: Arrays) -> Iterator[Arrays]:
    """Yield the samples one by one, each as a batch of one: several models take no larger batch."""
    count = len(next(iter(samples.values())))
    for row in range(count):
        yield {name: array[row : row + 1] for name, array in samples.items()}


def score_models(original: Path, candidates: Sequence[Path], samples: Arrays, labels: Array | None) -> list[Score]:
    """Score the original and every candidate.

    Args:
        original: the float model.
        candidates: files with the same inputs and outputs.
        samples: scoring samples by input name.
        labels: int64 class of each sample, or None.

    Returns:
        One score each, the original's first (its SQNR is infinite, its agreement and ratios are 1).
    """
    paths = [original, *candidates]
    sessions = [open_session(path) for path in paths]
    fidelity = compare_outputs(sessions, feeds(samples), labels)
    ratios = latency_ratios(sessions, next(feeds(samples)))
    return [
        Score(close, *count_ops(path), model_bytes(path), ratio)
        for path, close, ratio in zip(paths, fidelity, ratios, strict=True)
    ]


class _OutputError:
    """Accumulates one candidate's error in float64, so that long sums lose nothing."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self._signal = dict.fromkeys(outputs, 0.0)
        self._noise = dict.fromkeys(outputs, 0.0)
        self._agreements: list[bool] = []
        self._correct: list[bool] = []

    def add(self, reference: Arrays, outputs: Arrays, label: int | None) -> None:
        for name, expected in reference.items():
            wide = expected.astype(np.float64)
            self._signal[name] += float(np.sum(wide**2))
            self._noise[name] += float(np.sum((wide - outputs[name].astype(np.float64)) ** 2))
        first = next(iter(reference))
        if reference[first].ndim == 2:
            answer = int(outputs[first].argmax())
            self._agreements.append(answer == int(reference[first].argmax()))
            if label is not None:
                self._correct.append(answer == label)

    def fidelity(self) -> Fidelity:
        decibels = {name: sqnr_db(self._signal[name], self._noise[name]) for name in self._signal}
        shares = [float(np.mean(answers)) if answers else None for answers in (self._agreements, self._correct)]
        return Fidelity(decibels, *shares)


def sqnr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): NaN where a value was not finite, inf where nothing differs."""
    if not np.isfinite(noise):
        return float("nan")
    return float("inf") if noise == 0 else float(10 * np.log10(signal / noise))


def compare_outputs(
    sessions: Sequence[ort.InferenceSession], samples: Iterator[Arrays], labels: Array | None
) -> list[Fidelity]:
    """Return how close each session's outputs are to those of the first, over all samples."""
    names = [output.name for output in sessions[0].get_outputs()]
    errors = [_OutputError(names) for _ in sessions]
    for row, feed in enumerate(samples):
        label = None if labels is None else int(labels[row])
        outputs = [dict(zip(names, session.run(names, feed), strict=True)) for session in sessions]
        for error, arrays in zip(errors, outputs, strict=True):
            error.add(outputs[0], arrays, label)
    return [error.fidelity() for error in errors]


def latency_ratios(sessions: Sequence[ort.InferenceSession], feed: Arrays) -> list[LatencyRatio]:
    """Time the sessions in interleaved rounds and return the ratio of each to the first.

    In a round every session runs for about 10 ms, after one run that is not counted and brings its weights
    back into the caches. A busy neighbor on the same processor slows integer kernels by another factor than
    float ones, and comes and goes within seconds. So the rounds are short, for all sessions to see every
    quiet moment, and go on until no minimum has fallen for a while, or the time is spent.
    """
    names = [output.name for output in sessions[0].get_outputs()]
    runs = [_runs_per_round(session, names, feed) for session in sessions]
    rounds: list[list[list[float]]] = [[] for _ in sessions]
    settled, start = 0, time.perf_counter()
    while settled < _SETTLED_ROUNDS and time.perf_counter() - start < _LATENCY_SECONDS:
        fell = False
        for session, count, collected in zip(sessions, runs, rounds, strict=True):
            session.run(names, feed)
            times = [_time_run(session, names, feed) for _ in range(count)]
            fell |= not collected or min(times) < _SETTLED_FALL * min(map(min, collected))
            collected.append(times)
        settled = 0 if fell else settled + 1
    return [_ratio(collected, rounds[0]) for collected in rounds]


def _ratio(candidate: list[list[float]], original: list[list[float]]) -> LatencyRatio:
    def minimum_ratio(start: int, step: int) -> float:
        return min(map(min, candidate[start::step])) / min(map(min, original[start::step]))

    median = float(np.median(np.concatenate(candidate)) / np.median(np.concatenate(original)))
    spread = abs(minimum_ratio(0, 2) - minimum_ratio(1, 2)) if len(original) > 1 else 0.0
    return LatencyRatio(minimum_ratio(0, 1), spread, median)


def _runs_per_round(session: ort.InferenceSession, names: list[str], feed: Arrays) -> int:
    session.run(names, feed)
    return max(1, int(_ROUND_SECONDS / _time_run(session, names, feed)))


def _time_run(session: ort.InferenceSession, names: list[str], feed: Arrays) -> float:
    start = time.perf_counter()
    session.run(names, feed)
    return time.perf_counter() - start


def count_ops(model: Path) -> tuple[int, int]:
    """Return how many convolutions and matrix products run in floating point and in integers.

    Read from the graph that ONNX Runtime itself says it will execute, all optimizations applied: that a file
    is quantized promises nothing about how it runs.
    """
    with TemporaryDirectory(prefix="optimized-") as folder:
        optimized = Path(folder) / "model.onnx"
        options = _options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimized)
        # A model above 2 GiB does not fit one file.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        counts = Counter(_op_types(onnx.load(optimized, load_external_data=False).graph))
    return sum(counts[op] for op in FLOAT_OPS), sum(counts[op] for op in INTEGER_OPS)


def _op_types(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from _op_types(body)


def model_bytes(model: Path) -> int:
    """Return the bytes of a model and of every external file that its initializers name."""
    proto = onnx.load(model, load_external_data=False)
    entries = [entry for tensor in proto.graph.initializer for entry in tensor.external_data]
    names = {entry.value for entry in entries if entry.key == "location"}
    return int(model.stat().st_size) + sum(int((model.parent / name).stat().st_size) for name in names)
