"""Stores the same pruned weights in every sparse format: are outputs the same, what do files and loading take?

Usage: python -m benchmarks.sparse_files [--data ROOT] [--models a,b] [--sparsity S] [--out FILE.md]
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import readers
from benchmarks.compiler import run_with_words
from benchmarks.extras import MINILM, SILERO, SPEECH_SAMPLES, caption_tokens, silence, speech_feed
from benchmarks.models import CNN_MODELS, HALF_RESNET8, PUBLIC_MODELS, BenchmarkModel
from benchmarks.process import REPOSITORY, run_measured
from benchmarks.readers import Arrays, save_arrays
from benchmarks.scoring import count_ops, feeds, latency_ratios, model_bytes, open_session
from benchmarks.tables import deliver, environment, latency, markdown_table, note

DENSE = "dense"
FORMATS = (DENSE, "bitmask", "delta", "f2f", "auto")
ROWS = 32
"""Inputs that outputs are compared on; every one of them is compared bit for bit."""
_LOADS = 9

_INTRODUCTION = """# Sparse files: figures

Every model is compiled once, with a share of zeros in the 8-bit weights of every Conv, MatMul and Gemm (the smallest
go, nothing is trained; accuracy is no subject here), and its plan is then replayed with every sparse format. Outputs
are compared with those of the dense file bit for bit. Load time: the fastest of several sessions, opened in turn in one
process, as a ratio to the dense file. Peak memory: of a fresh process that opens the file, runs it once and ends, above
that for the dense file.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A model and what it is run on.

    Attributes:
        name: for the tables.
        locate: returns the file, None where it is missing; takes the data folder and a scratch folder.
        calibration: arrays by input name, None to compile without data.
        inputs: the feeds that outputs are compared on.
        classes: its answers are classes, whose agreement has a floor that is switched off.
    """

    name: str
    locate: Callable[[Path | None, Path], Path | None]
    calibration: Callable[[Path], Arrays | None]
    inputs: Callable[[Path], Iterator[Arrays]]
    classes: Callable[[Path], bool] = lambda _: False


def cases() -> Iterator[Case]:
    """Yield the models: what needs no data folder first."""
    for model in (*PUBLIC_MODELS, *CNN_MODELS, HALF_RESNET8):
        yield _of_suite(model)
    yield Case(MINILM, _stored(MINILM), caption_tokens, lambda root: islice(feeds(caption_tokens(root)), ROWS))
    yield Case(SILERO, _stored(SILERO), lambda _: None, _speech_windows)


def _of_suite(model: BenchmarkModel) -> Case:
    def inputs(root: Path) -> Iterator[Arrays]:
        return islice(feeds(model.samples(root).scoring), ROWS)

    def classes(root: Path) -> bool:
        return model.samples(root).labels is not None

    return Case(model.name, model.locate, lambda root: model.samples(root).calibration, inputs, classes)


def _stored(name: str) -> Callable[[Path | None, Path], Path | None]:
    def locate(data: Path | None, _: Path) -> Path | None:
        path = data / "models" / f"{name}.onnx" if data else None
        return path if path and path.is_file() else None

    return locate


def _speech_windows(root: Path) -> Iterator[Arrays]:
    samples = readers.speech(root / "audio" / "speech_20s.wav")
    for row in range(ROWS):
        first = row * SPEECH_SAMPLES
        yield speech_feed(samples[first : first + SPEECH_SAMPLES], silence())


def rows_of(case: Case, sparsity: float, data: Path | None, scratch: Path) -> Iterator[list[str]]:
    """Yield the table's row of every format; none where the model's file is missing."""
    path = case.locate(data, scratch)
    if path is None:
        print(f"{case.name}: skipped, its file is not there", file=sys.stderr)
        return
    root = data or scratch
    found = compiled(case, path, sparsity, root, scratch)
    files = {name: file for name, file in found.items() if isinstance(file, Path)}
    inputs = list(case.inputs(root))
    first = inputs[0]
    if DENSE in files:
        sessions = [open_session(file) for file in files.values()]
        ratios = dict(zip(files, latency_ratios(sessions, first), strict=True))
        times, peaks = load_seconds(files), {name: peak_bytes(file, first, scratch) for name, file in files.items()}
    for name, file in found.items():
        if not isinstance(file, Path) or DENSE not in files:
            yield [name, *["-"] * 7, note(str(file), {str(scratch): "SCRATCH", str(REPOSITORY): "REPOSITORY"})]
            continue
        same = "-" if name == DENSE else said(*compared(files[DENSE], file, inputs))
        kernels = " + ".join(map(str, count_ops(file)))
        sizes = [f"{model_bytes(file):,}", f"{zipped_bytes(file):,}"]
        loading = [f"{times[name] / times[DENSE]:.2f}", f"{(peaks[name] - peaks[DENSE]) / 1e6:+.1f}"]
        yield [name, same, kernels, *sizes, *loading, latency(ratios[name]), ""]
        print(f"{case.name} {name}: {same}", file=sys.stderr, flush=True)


def compiled(case: Case, path: Path, sparsity: float, root: Path, scratch: Path) -> dict[str, Path | str]:
    """Return the file of every format by its name, or why there is none."""
    calibration, arrays = scratch / "calibration.npz", case.calibration(root)
    asked = ["--target", "x86", "--min-sqnr=-1000", "--max-latency-ratio", "1000"]
    asked += ["--min-agreement", "0"] if case.classes(root) else []
    if arrays is not None:
        save_arrays(calibration, arrays)
    found: dict[str, Path | str] = {}
    for name in FORMATS:
        what = [] if name == DENSE else ["--plan", str(scratch / DENSE)]
        what = what or ["-O0", "--sparsity", f"{sparsity:g}:uniform"]
        words = [*asked, *what, "--sparse-format", name]
        tool = run_with_words(name, path, None if arrays is None else calibration, words, scratch / name)
        found[name] = tool.model if tool.model and tool.accepted else tool.notes
    return found


def compared(dense: Path, sparse: Path, inputs: Sequence[Arrays]) -> tuple[int, int]:
    """Return on how many inputs all outputs of both files have the same bytes, and the inputs in all."""
    sessions = [open_session(file) for file in (dense, sparse)]
    same = 0
    for feed in inputs:
        first, second = (session.run(None, feed) for session in sessions)
        same += all(_same(a, b) for a, b in zip(first, second, strict=True))
    return same, len(inputs)


def _same(first: object, second: object) -> bool:
    a, b = np.asarray(first), np.asarray(second)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def said(same: int, total: int) -> str:
    """Return in words on how many inputs outputs are the same."""
    return f"all {total} identical" if same == total else f"**{total - same} of {total} DIFFER**"


def load_seconds(files: dict[str, Path]) -> dict[str, float]:
    """Return the fastest opening of every file, all in turn."""
    best = dict.fromkeys(files, float("inf"))
    for _ in range(_LOADS):
        for name, file in files.items():
            started = time.perf_counter()
            open_session(file)
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def peak_bytes(file: Path, feed: Arrays, scratch: Path) -> int:
    """Return the peak memory of a fresh process that opens a file and runs it once: the least of three."""
    save_arrays(scratch / "feed.npz", feed)
    program = (
        "import sys, numpy, onnxruntime as o; s = o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']);"
        "s.run(None, dict(numpy.load(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(file), str(scratch / "feed.npz")]
    runs = [run_measured(command, scratch) for _ in range(3)]
    if failed := next((run for run in runs if run.exit_code), None):
        raise SystemExit(f"{file} does not load: {failed.failure}")
    return min(run.peak_bytes for run in runs)


def zipped_bytes(file: Path) -> int:
    """Return what a file takes in a zip."""
    place = file.with_suffix(".zip")
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file)
    return place.stat().st_size


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; unknown names end the program with the list of known ones."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse_files", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data folder; default: the public part only")
    parser.add_argument("--models", default="", metavar="A,B", help="names of the models to run; default: all")
    parser.add_argument("--sparsity", type=float, default=0.8, metavar="S", help="share of zeros; default: 0.8")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the report here instead of printing")
    given = parser.parse_args(argv)
    given.models = list(filter(None, given.models.split(",")))
    known = [case.name for case in cases()]
    if unknown := [name for name in given.models if name not in known]:
        parser.error(f"unknown models: {', '.join(unknown)}; known: {', '.join(known)}")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print or write its report."""
    given = parse_arguments(argv)
    command = f"python -m benchmarks.sparse_files {'--data ROOT ' if given.data else ''}--sparsity {given.sparsity:g}"
    header = ("format", "outputs", "float + integer ops", "file", "zipped", "load time", "peak MB", "latency", "")
    sections = [_INTRODUCTION, environment(command)]
    for case in cases():
        if given.models and case.name not in given.models:
            continue
        with TemporaryDirectory() as scratch:
            rows = list(rows_of(case, given.sparsity, given.data.resolve() if given.data else None, Path(scratch)))
        sections += [f"## {case.name}\n", markdown_table(header, rows)] if rows else []
    deliver(sections, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
