"""Compiles models with pruned weights of 8 bits and scores them on rows that no choice saw; prints markdown.

Usage: python -m benchmarks.sparsity [--data ROOT] [--models a,b] [--shares 0.5,0.7] [--kinds measured,uniform]
       [--fine-tune MINUTES] [--out FILE.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.answers import answers, bootstrap_interval, change, losses_by_row, output_levels, run_rows
from benchmarks.compiler import run_with_words
from benchmarks.low_bits import DIGITS, budget_words
from benchmarks.models import CNN_MODELS, PUBLIC_MODELS, BenchmarkModel, all_of_resnet20
from benchmarks.process import REPOSITORY
from benchmarks.readers import save_arrays
from benchmarks.tables import decibels, deliver, environment, markdown_table, note

MEASURED, UNIFORM, SURGEON, MAGNITUDE = "measured", "uniform", "surgeon", "magnitude"
KINDS = {
    MEASURED: ("", ""),
    UNIFORM: (":uniform", ""),
    SURGEON: (":uniform", "prune{methods=surgeon}"),
    MAGNITUDE: (":uniform", "prune{methods=magnitude}"),
}
"""Kind -> (what is behind the share, the pass instead of ``prune``)."""

MODELS = (*PUBLIC_MODELS, all_of_resnet20(), *(m for m in CNN_MODELS if m.name == "squeezenet1_1"))
TARGETS = {0.5: 1.5, 0.7: 8.0}
"""Share of zeros -> the most points of top-1 that may be lost without training."""
TRAINED_TARGETS = {0.7: 2.0}

_INTRODUCTION = """# Sparsity: figures

Every file was compiled by the command in a fresh process, with 8-bit weights and activations, from calibration rows
without labels, and scored with ONNX Runtime on rows that nothing else has read. Zeros are counted over the weights of
all Conv, MatMul and Gemm, the first and the last layer among them. Floors were switched off, so that no repair keeps
more weights. `measured` is the default; `uniform` the same share in every layer; `surgeon` is uniform by the one
sweep of SparseGPT; `magnitude` is uniform, the smallest weights go and nothing makes up for them but the bias.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is compiled: share of zeros, kind, minutes of training."""

    share: float
    kind: str
    minutes: float = 0.0

    def words(self, rows: int, *, classes: bool) -> list[str]:
        """Return the options of the command."""
        from qcompiler.passes import WITH_DATA

        behind, other = KINDS[self.kind]
        found = ["--target", "x86", "--sparsity", f"{self.share:g}{behind}", "--min-sqnr=-1000"]
        found += ["--max-latency-ratio", "1000", *budget_words(rows), *(["--min-agreement", "0"] if classes else [])]
        found += ["--fine-tune", f"{self.minutes:g}"] if self.minutes else []
        return [*found, "--passes", ",".join(other if p == "prune" else p for p in WITH_DATA)] if other else found


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; unknown names end the program with the list of known ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparsity", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data folder; default: the public part only")
    parser.add_argument("--models", default="", metavar="A,B", help="names of the models to run; default: all")
    parser.add_argument("--shares", default="0.5,0.7", metavar="S,S", help="shares of zeros; default: 0.5,0.7")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="A,B", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--fine-tune", type=float, default=0.0, metavar="MINUTES", help="train for so long")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the report here instead of printing")
    given = parser.parse_args(argv)
    for what, known in (("models", [m.name for m in MODELS]), ("kinds", list(KINDS))):
        chosen = list(filter(None, getattr(given, what).split(",")))
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"unknown {what}: {', '.join(unknown)}; known: {', '.join(known)}")
        setattr(given, what, chosen)
    try:
        given.shares = [float(share) for share in given.shares.split(",")]
    except ValueError as error:
        parser.error(f"--shares takes numbers with commas between them: {error}")
    return given


def rows_of(
    model: BenchmarkModel, settings: Sequence[Setting], data: Path | None, scratch: Path
) -> Iterator[list[str]]:
    """Yield the row of every setting in the table of a model; none where its file is missing."""
    path = model.locate(data, scratch)
    if path is None:
        print(f"{model.name}: skipped, {model.file} is not there", file=sys.stderr)
        return
    samples, calibration = model.samples(data or scratch), scratch / "calibration.npz"
    save_arrays(calibration, samples.calibration)
    rows = len(next(iter(samples.calibration.values())))
    reference = run_rows(path, samples.scoring)
    hidden = {str(scratch): "SCRATCH", str(REPOSITORY): "REPOSITORY", **({str(data): "ROOT"} if data else {})}
    for number, setting in enumerate(settings):
        asked = setting.words(rows, classes=samples.labels is not None)
        tool = run_with_words(model.name, path, calibration, asked, scratch / f"run{number}")
        cells = [f"{setting.share:g}", setting.kind, f"{setting.minutes:g}" if setting.minutes else "-"]
        if tool.model is None:
            yield [*cells, "-", "-", "-", "-", "-", note(tool.notes, hidden)]
            continue
        found = run_rows(tool.model, samples.scoring)
        levels = ", ".join(decibels(v) for v in output_levels(reference, found).values())
        loss = interval = agreement = "-"
        if samples.labels is not None:
            name = next(iter(reference))
            changed = change(*(answers(o[name], samples.labels) for o in (reference, found)))
            low, high = bootstrap_interval(losses_by_row([changed]))
            loss, interval = f"{changed.points:+.2f}", f"{low:+.2f} to {high:+.2f}"
            agreement = f"{100 * changed.agrees.mean():.1f} %"
        zeros = f"{sparsity_of(tool.model.parent):.2f} %"
        yield [*cells, zeros, loss, interval, agreement, levels, verdict(model.name, setting, loss)]
        print(f"{model.name} {setting.share:g} {setting.kind}: {loss} points", file=sys.stderr, flush=True)


def sparsity_of(folder: Path) -> float:
    """Return the zeros in percent that the report of a result states."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = next(p for p in report["passes"] if p["name"] == "prune")
    return float(next(m["value"] for m in found["metrics"] if m["name"] == "sparsity"))


def verdict(model: str, setting: Setting, loss: str) -> str:
    """Return whether the goal of a cell is reached, in words; "" where there is none."""
    goals = TRAINED_TARGETS if setting.minutes else TARGETS
    goal = goals.get(setting.share) if setting.kind == MEASURED and model != DIGITS.name else None
    if goal is None or loss == "-":
        return ""
    return f"goal {goal:g}: {'reached' if float(loss) <= goal else 'missed'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print or write its report."""
    given = parse_arguments(argv)
    settings = [Setting(s, k, given.fine_tune) for s in given.shares for k in given.kinds]
    header = ("asked", "kind", "minutes", "zeros", "loss", "95 %", "agreement", "SQNR", "")
    sections = [
        _INTRODUCTION,
        environment(f"python -m benchmarks.sparsity {'--data ROOT' if given.data else ''}".strip()),
    ]
    for model in MODELS:
        if given.models and model.name not in given.models:
            continue
        with TemporaryDirectory() as scratch:
            rows = list(rows_of(model, settings, given.data.resolve() if given.data else None, Path(scratch)))
        sections += [f"## {model.name}\n", markdown_table(header, rows)] if rows else []
    deliver(sections, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
