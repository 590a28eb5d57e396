"""What does not fit the common table: a stateful speech model, a text model, a model above 2 GiB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks import generated, readers
from benchmarks.compiler import run_qcompile
from benchmarks.process import ToolRun
from benchmarks.readers import Array, Arrays
from benchmarks.results import scorable
from benchmarks.rivals import DYNAMIC, run_rival
from benchmarks.scoring import (
    LatencyRatio,
    compare_outputs,
    count_ops,
    feeds,
    latency_ratios,
    model_bytes,
    open_session,
)
from benchmarks.tables import cost_cells, decibels, latency, markdown_table, note, percent, sqnr, wrapped

SILERO = "silero_vad"
MINILM = "all_minilm_l6_v2"
LARGE = "matmul_stack"

_WINDOW = 512
_CONTEXT = 64
SPEECH_SAMPLES = _WINDOW + _CONTEXT
"""What the voice activity detector takes at once."""
_SPEECH_THRESHOLD = 0.5
_SPEECH_RATE = 16000
_CALIBRATION_SENTENCES = 100
_DEFAULT_PAIRS = 300
_LARGE_LAYERS = 37
_LARGE_WIDTH = 4096


def speech_section(data: Path, scratch: Path, hidden: Mapping[str, str]) -> str:
    """Return the voice activity detector: share of speech windows, before and after.

    It is compiled without data: the only recording is the one that scores.
    """
    original = data / "models" / f"{SILERO}.onnx"
    samples = readers.speech(data / "audio" / "speech_20s.wav")
    feed = speech_feed(samples[:SPEECH_SAMPLES], silence())
    runs = [scorable(original, run_qcompile(original, None, scratch), feed)]
    paths = _files(original, runs)
    sessions = [open_session(path) for path in paths]
    probabilities = [_speech_probabilities(session, samples) for session in sessions]
    ratios = latency_ratios(sessions, feed)
    rows = []
    for path, values, ratio in zip(paths, probabilities, ratios, strict=True):
        windows = values > _SPEECH_THRESHOLD
        agreement = float(np.mean(windows == (probabilities[0] > _SPEECH_THRESHOLD)))
        cells = [percent(float(np.mean(windows))), f"{np.mean(values):.4f}", percent(agreement)]
        rows.append([*cells, *_file_cells(path, original, ratio)])
    header = ("tool", "speech windows %", "mean probability", "same answer %", *_FILE_HEADER)
    about = f"snakers4/silero-vad; MIT. speech_20s.wav, {len(probabilities[0])} windows of {_WINDOW} samples."
    return f"### {SILERO}\n\n{wrapped(about)}\n\n{_table(header, rows, runs, hidden)}"


def silence() -> Array:
    """Return the state of the voice activity detector before anything was said."""
    return np.zeros((2, 1, 128), dtype=np.float32)


def speech_feed(window: Array, state: Array) -> Arrays:
    """Return the inputs of the voice activity detector for one window behind its context."""
    return {"input": window[None], "state": state, "sr": np.array(_SPEECH_RATE, dtype=np.int64)}


def _speech_probabilities(session: ort.InferenceSession, samples: Array) -> Array:
    padded = np.concatenate([np.zeros(_CONTEXT, dtype=np.float32), samples])
    state, probabilities = silence(), []
    for start in range(0, len(samples) - _WINDOW + 1, _WINDOW):
        window = padded[start : start + _CONTEXT + _WINDOW]
        output, state = session.run(["output", "stateN"], speech_feed(window, state))
        probabilities.append(float(output.item()))
    return np.array(probabilities)


def text_section(data: Path, scratch: Path, hidden: Mapping[str, str], all_pairs: bool) -> str:
    """Return the sentence-embedding model: Spearman correlation with the gold, before and after."""
    original = data / "models" / f"{MINILM}.onnx"
    calibration = scratch / "calibration.npz"
    readers.save_arrays(calibration, caption_tokens(data))
    sentences, gold, available = _scoring_pairs(data, None if all_pairs else _DEFAULT_PAIRS)
    runs = [run_rival(DYNAMIC, original, calibration, scratch), run_qcompile(original, calibration, scratch)]
    runs = [scorable(original, run, sentences[0]) for run in runs]
    paths = _files(original, runs)
    sessions = [open_session(path) for path in paths]
    fidelity = compare_outputs(sessions, iter(sentences), None)
    ratios = latency_ratios(sessions, sentences[0])
    rows = []
    for path, session, close, ratio in zip(paths, sessions, fidelity, ratios, strict=True):
        embeddings = np.stack([_embedding(session, sentence) for sentence in sentences])
        correlation = _spearman(embeddings[: len(gold)], embeddings[len(gold) :], gold)
        rows.append([f"{100 * correlation:.2f}", sqnr(close.sqnr_db), *_file_cells(path, original, ratio)])
    header = ("tool", "Spearman x 100", "SQNR dB", *_FILE_HEADER)
    about = (
        "sentence-transformers/all-MiniLM-L6-v2; Apache-2.0. Multi30k train (en): calibrate lines "
        f"0-{_CALIBRATION_SENTENCES - 1}; STS14: score {len(gold)} of {available} pairs, evenly spaced."
    )
    return f"### {MINILM}\n\n{wrapped(about)}\n\n{_table(header, rows, runs, hidden)}"


def caption_tokens(data: Path) -> Arrays:
    """Return the captions that calibrate the text model, as its inputs."""
    captions = readers.gzip_lines(data / "text/multi30k/train.lc.norm.tok.en.gz", _CALIBRATION_SENTENCES)
    return _padded(readers.tokenize(data / "text/minilm_tokenizer.json", captions))


def _scoring_pairs(data: Path, limit: int | None) -> tuple[list[Arrays], Array, int]:
    """Return all first and then all second sentences, the gold similarities, and how many pairs there are."""
    first, second, gold = readers.sentence_pairs(data / "text/sts14_pairs.tsv")
    # Evenly spaced, because the file is sorted by the three sources of its pairs.
    chosen = np.linspace(0, len(gold) - 1, min(len(gold), limit or len(gold))).astype(int)
    texts = [side[row] for side in (first, second) for row in chosen]
    tokens = readers.tokenize(data / "text/minilm_tokenizer.json", texts)
    return [_sentence(identifiers) for identifiers in tokens], gold[chosen], len(gold)


def _sentence(tokens: Sequence[int]) -> Arrays:
    identifiers = np.array([tokens], dtype=np.int64)
    return {
        "input_ids": identifiers,
        "attention_mask": np.ones_like(identifiers),
        "token_type_ids": np.zeros_like(identifiers),
    }


def _padded(sentences: Sequence[Sequence[int]]) -> Arrays:
    """Return all sentences in one array per input; the attention mask leaves the padding out."""
    length = max(map(len, sentences))
    arrays = {name: np.zeros((len(sentences), length), dtype=np.int64) for name in _sentence([0])}
    for row, tokens in enumerate(sentences):
        arrays["input_ids"][row, : len(tokens)] = tokens
        arrays["attention_mask"][row, : len(tokens)] = 1
    return arrays


def _embedding(session: ort.InferenceSession, sentence: Arrays) -> Array:
    (states,) = session.run(["last_hidden_state"], sentence)
    return np.asarray(states[0].mean(axis=0))


def _spearman(first: Array, second: Array, gold: Array) -> float:
    from scipy.stats import spearmanr  # here, because nothing else needs scipy

    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(spearmanr(np.sum(first * second, axis=1) / norms, gold).statistic)


def large_section(scratch: Path, hidden: Mapping[str, str]) -> str:
    """Return the cost of compiling a generated model above 2 GiB, without data."""
    original = scratch / f"{LARGE}.onnx"
    generated.write_matmul_stack(original, _LARGE_LAYERS, _LARGE_WIDTH)
    samples = {"input": np.random.default_rng(1).standard_normal((4, _LARGE_WIDTH), dtype=np.float32)}
    runs = [scorable(original, run_qcompile(original, None, scratch), next(feeds(samples)))]
    paths = _files(original, runs)
    fidelity = compare_outputs([open_session(path) for path in paths], feeds(samples), None)
    rows = []
    for path, close in zip(paths, fidelity, strict=True):
        size = model_bytes(path)
        share = f"{size / model_bytes(original):.3f}"
        rows.append([decibels(close.sqnr_db["output"]), *map(str, count_ops(path)), str(size), share])
    header = ("tool", "SQNR dB", "ops in float", "ops in integer", "file bytes", "file / float")
    about = (
        f"{_LARGE_LAYERS} MatMul layers, {_LARGE_WIDTH} x {_LARGE_WIDTH} float32, random, in external data; "
        "compiled without data, scored on 4 random samples."
    )
    return f"### {LARGE}\n\n{wrapped(about)}\n\n{_table(header, rows, runs, hidden)}"


_FILE_HEADER = ("ops in float", "ops in integer", "file bytes", "file / float", "latency, min")


def _files(original: Path, runs: Sequence[ToolRun]) -> list[Path]:
    """Return the original and every file that can be scored."""
    return [original, *(run.model for run in runs if run.model)]


def _file_cells(path: Path, original: Path, ratio: LatencyRatio) -> list[str]:
    size = model_bytes(path)
    float_ops, integer_ops = count_ops(path)
    share = f"{size / model_bytes(original):.3f}"
    return [str(float_ops), str(integer_ops), str(size), share, latency(ratio)]


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], runs: Sequence[ToolRun], hidden: Mapping[str, str]
) -> str:
    """Return the table of the original's row and one row a run, whose figures are dashes if it failed."""
    original, *others = rows
    scored = iter(others)
    lines = [["float original", *original, "", "", ""]]
    for run in runs:
        cells = next(scored) if run.model else ["-"] * len(original)
        lines.append([run.name, *cells, *cost_cells(run.measured), note(run.notes, hidden)])
    return markdown_table((*header, "wall s", "peak MB", "notes"), lines)
