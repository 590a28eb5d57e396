"""Compares ``qcompile`` with its contenders on whole models and prints markdown tables.

Usage: python -m benchmarks.end_to_end [--data ROOT] [--models a,b] [--out FILE.md] [--all-pairs] [--large]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import extras, tables
from benchmarks.compiler import run_qcompile
from benchmarks.models import CNN_MODELS, HALF_RESNET8, PUBLIC_MODELS, BenchmarkModel
from benchmarks.process import REPOSITORY
from benchmarks.readers import save_arrays
from benchmarks.results import Entry, ModelResult, scorable
from benchmarks.rivals import STATIC_METHODS, run_rival
from benchmarks.scoring import feeds, score_models

MODELS = (*PUBLIC_MODELS, *CNN_MODELS, HALF_RESNET8)
EXTRAS = (extras.SILERO, extras.MINILM, extras.LARGE)
NO_DATA_MODELS = ("cifar10_resnet20", "mlperftiny_resnet8", "kws_dscnn", "mobilenet_v1_025")

_INTRODUCTION = """# Benchmarks

Written by `benchmarks/end_to_end.py`; do not edit. Every tool ran in a fresh process on the same calibration
samples; wall seconds include its imports, and peak MB is the resident set of its largest process. Where PyTorch
is installed, `quant_pre_process` imports it, which costs about a second and 200 MB. All files were
scored in one process by ONNX Runtime on samples that no tool had seen.

- SQNR: signal-to-noise ratio of the output against the float original, in dB, over all scoring samples.
- agreement: share of samples with the float original's answer; top-1: share with the right one.
- ops in float, ops in integer: convolutions and matrix products in the graph that ONNX Runtime executes.
- latency: ratio to the float original, one thread, batch 1, interleaved runs: of the shortest runs (+- the
  difference between even and odd rounds), and of the median runs, which depend on the machine's load.
- ORT: `onnxruntime.quantization.quantize_static`, QDQ, uint8 activations, per-channel int8 weights, after
  `quant_pre_process`; dynamic: `quantize_dynamic`, per-channel int8 weights.
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line.

    Attributes:
        data: the data folder; None runs the public part only.
        models: names to run; empty means all.
        out: where to write the report; None prints it.
        all_pairs: score the text model on all sentence pairs.
        large: also compile a generated model of 2.3 GiB.
    """

    data: Path | None
    models: tuple[str, ...]
    out: Path | None
    all_pairs: bool
    large: bool

    def wants(self, name: str) -> bool:
        """Return whether a model is to be run."""
        return not self.models or name in self.models

    @property
    def command(self) -> str:
        """Return the command to repeat this run, without the machine's paths."""
        parts = ["python -m benchmarks.end_to_end"]
        parts += ["--data ROOT"] if self.data else []
        parts += [f"--models {','.join(self.models)}"] if self.models else []
        parts += ["--all-pairs"] if self.all_pairs else []
        parts += ["--large"] if self.large else []
        return " ".join(parts)


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Return the parsed command line; unknown model names end the program with the list of known ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data folder; default: the public part only")
    parser.add_argument("--models", default="", metavar="A,B", help="names of the models to run; default: all")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the report here instead of printing")
    parser.add_argument("--all-pairs", action="store_true", help="score the text model on all sentence pairs")
    parser.add_argument("--large", action="store_true", help=f"also {extras.LARGE}, a generated 2.3 GiB model")
    given = parser.parse_args(argv)
    models = tuple(filter(None, given.models.split(",")))
    known = [*(model.name for model in MODELS), *EXTRAS]
    if unknown := [name for name in models if name not in known]:
        parser.error(f"unknown models: {', '.join(unknown)}; known: {', '.join(known)}")
    if given.data and not given.data.is_dir():
        parser.error(f"--data: {given.data} is no folder")
    data = given.data.resolve() if given.data else None
    return Arguments(data, models, given.out, given.all_pairs, given.large)


def progress(text: str) -> None:
    """Print a line about what is being done, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def evaluate(model: BenchmarkModel, path: Path, data: Path, scratch: Path) -> ModelResult:
    """Run all tools on one model and score what they wrote."""
    samples = model.samples(data)
    calibration = scratch / "calibration.npz"
    save_arrays(calibration, samples.calibration)
    runs = [run_rival(method, path, calibration, scratch) for method in STATIC_METHODS]
    runs += [run_qcompile(path, calibration, scratch, effort) for effort in (1, 2)]
    if model.name in NO_DATA_MODELS:
        runs.append(run_qcompile(path, None, scratch))
    runs = [scorable(path, run, next(feeds(samples.scoring))) for run in runs]
    candidates = [run.model for run in runs if run.model]
    original, *scores = score_models(path, candidates, samples.scoring, samples.labels)
    remaining = iter(scores)
    entries = [Entry(run, next(remaining) if run.model else None) for run in runs]
    return ModelResult(model, original, entries)


def evaluate_all(arguments: Arguments, scratch: Path) -> list[ModelResult]:
    """Run all tools on all models that are wanted and available."""
    results = []
    for model in MODELS:
        if not arguments.wants(model.name):
            continue
        folder = scratch / model.name
        folder.mkdir()
        path = model.locate(arguments.data, folder)
        if path is None:
            progress(f"{model.name}: skipped, {model.file} is not there")
            continue
        progress(f"{model.name}: {model.rows}")
        results.append(evaluate(model, path, arguments.data or scratch, folder))
    return results


def extra_sections(arguments: Arguments, scratch: Path, hidden: dict[str, str]) -> list[str]:
    """Return the sections of the measurements that do not fit the common table."""
    sections = []
    for name in EXTRAS:
        if not arguments.wants(name) or (name == extras.LARGE and not arguments.large):
            continue
        if name != extras.LARGE and not (arguments.data and (arguments.data / f"models/{name}.onnx").is_file()):
            progress(f"{name}: skipped, models/{name}.onnx is not there")
            continue
        progress(name)
        folder = scratch / name
        folder.mkdir()
        if name == extras.LARGE:
            sections.append(extras.large_section(folder, hidden))
        elif name == extras.SILERO and arguments.data:
            sections.append(extras.speech_section(arguments.data, folder, hidden))
        elif arguments.data:
            sections.append(extras.text_section(arguments.data, folder, hidden, arguments.all_pairs))
    return sections


def main(argv: Sequence[str] | None = None) -> None:
    """Run the suite and print or write its report."""
    arguments = parse_arguments(argv)
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        scratch = Path(folder)
        hidden = {folder: "SCRATCH", str(REPOSITORY): "REPOSITORY"}
        if arguments.data:
            hidden[str(arguments.data)] = "ROOT"
        results = evaluate_all(arguments, scratch)
        others = extra_sections(arguments, scratch, hidden)
    compared = [result for result in results if result.model in CNN_MODELS]
    sections = [
        _INTRODUCTION,
        tables.environment(arguments.command),
        tables.summary_section(compared) if compared else "",
        tables.placement_section(compared),
        tables.no_data_section(results),
        "## Models\n",
        *(tables.model_section(result, hidden) for result in results),
        *others,
    ]
    report = "\n".join(filter(None, sections))
    if arguments.out:
        arguments.out.write_text(report, encoding="utf-8")
    else:
        print(report)


if __name__ == "__main__":
    main()
