"""Compiles models with weights below 8 bits and scores them on rows that no search saw; prints markdown.

Usage: python -m benchmarks.below_8_bits [--data ROOT] [--models a,b] [--widths 4,3] [--kinds mixed,uniform]
       [--effort N] [--fine-tune MINUTES] [--seeds 0,1,2] [--out FILE.md] [--keep DIR]

With --keep every run is kept in DIR, runs that are there are not repeated, and the report is of all that DIR has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from benchmarks import low_bit_tables as tables
from benchmarks.answers import answers, change, output_levels, run_rows
from benchmarks.compiler import run_with_words
from benchmarks.low_bits import (
    MIXED,
    MODELS,
    PLAIN,
    RIVAL,
    SOLVERS,
    UNIFORM,
    Run,
    Setting,
    ends_in_eight_bits,
    kept_path,
    load_run,
    report_facts,
    save_run,
    with_answers,
    words,
)
from benchmarks.models import BenchmarkModel, Samples
from benchmarks.process import REPOSITORY, ToolRun
from benchmarks.readers import Arrays, save_arrays
from benchmarks.rivals import INT4, run_rival
from benchmarks.scoring import LatencyRatio, feeds, latency_ratios, open_session
from benchmarks.stored import storage, unexpected_sizes
from benchmarks.tables import environment, note, wrapped

KINDS = (MIXED, UNIFORM, PLAIN, RIVAL, *SOLVERS)
FULL = Setting(8)

_INTRODUCTION = """# Weights below 8 bits: figures

Written by `benchmarks/below_8_bits.py`; do not edit. Every file was compiled by the command in a fresh process, from
calibration rows without labels, and scored with ONNX Runtime on rows that nothing else has ever read. Floors were
switched off, so that no repair adds bits.

- W4A8: the weights of all Conv, MatMul and Gemm, the first, the last and depthwise layers among them, take at most
  4 bits on average: `stored bits` is read from the file, bytes of codes against weights of the original. `mixed`
  gives every layer a width of its own, `uniform` the same. `nearest, ends in 8 bits`, for orientation, rounds to
  nearest (clips by search) with the first and the last layer in 8 bits and no bias correction.
- loss: top-1 of the float original less that of the result, in points, on the same rows; cross-entropy: its rise, in
  nats; agreement: rows with the original's answer; lost / gained: right answers. All are means over the seeds, which
  decide what the calibration rows are used for.
- 95 %: paired bootstrap over the scoring rows, 10,000 draws, of the loss that is the mean of the seeds.
- The report is of all runs that a folder holds (`--keep`): the command below is the last of the calls that filled it;
  the last section has the command line of every compilation. Other work ran on the machine meanwhile.
- `onnxruntime.quantization`: `quantize_static` with `QInt4` weights per channel, min-max, one call.
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line.

    Attributes:
        data: the data folder; None runs the public part only.
        models: names to run; empty means all.
        settings: what to compile each of them with.
        seeds: of the command; rivals have none.
        out: where to write the report; None prints it.
        keep: folder of finished runs; None keeps nothing.
        command: the words to repeat this run, without the machine's paths.
    """

    data: Path | None
    models: tuple[str, ...]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    out: Path | None
    keep: Path | None
    command: str


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Return the parsed command line; unknown names end the program with the list of known ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.below_8_bits", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data folder; default: the public part only")
    parser.add_argument("--models", default="", metavar="A,B", help="names of the models to run; default: all")
    parser.add_argument("--widths", default="8,4,3,2", metavar="N,M", help="bits of the weights; default: 8,4,3,2")
    parser.add_argument("--kinds", default=f"{MIXED},{UNIFORM}", metavar="A,B", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--effort", type=int, default=1, choices=range(4), help="of the command; default: 1")
    parser.add_argument("--fine-tune", type=float, default=0.0, metavar="MINUTES", help="train for so long")
    parser.add_argument("--seeds", default="0", metavar="N,M", help="seeds of the command; default: 0")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the report here instead of printing")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep finished runs here and go on from them")
    given = parser.parse_args(argv)
    models, kinds = (tuple(filter(None, text.split(","))) for text in (given.models, given.kinds))
    for what, chosen, known in (("models", models, [m.name for m in MODELS]), ("kinds", kinds, KINDS)):
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"unknown {what}: {', '.join(unknown)}; known: {', '.join(known)}")
    if given.data and not given.data.is_dir():
        parser.error(f"--data: {given.data} is no folder")
    try:
        widths, seeds = ([int(number) for number in text.split(",")] for text in (given.widths, given.seeds))
    except ValueError as error:
        parser.error(f"--widths and --seeds take whole numbers with commas between them: {error}")
    settings = dict.fromkeys(_setting(w, k, given.effort, given.fine_tune) for w in widths for k in kinds)
    return Arguments(
        data=given.data.resolve() if given.data else None,
        models=models,
        settings=tuple(setting for setting in settings if setting is not None),
        seeds=tuple(seeds),
        out=given.out,
        keep=given.keep.resolve() if given.keep else None,
        command=_command(given),
    )


def _setting(width: int, kind: str, effort: int, minutes: float) -> Setting | None:
    """Return a setting, None where it would be no other than one that is there."""
    if width == FULL.width:
        return FULL if kind == MIXED else None
    if kind == RIVAL:
        return Setting(width, kind) if width == 4 else None
    return Setting(width, kind, effort, minutes) if kind in (MIXED, UNIFORM) else Setting(width, kind)


def _command(given: argparse.Namespace) -> str:
    parts = ["python -m benchmarks.below_8_bits", "--data ROOT" if given.data else ""]
    parts += [f"--models {given.models}" if given.models else "", f"--widths {given.widths}", f"--kinds {given.kinds}"]
    parts += [f"--effort {given.effort}", f"--fine-tune {given.fine_tune:g}" if given.fine_tune else ""]
    kept = "--keep DIR" if given.keep else ""
    return " ".join(filter(None, [*parts, f"--seeds {given.seeds}", kept]))


def progress(text: str) -> None:
    """Print a line about what is being done, apart from the report."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is there, with its samples and what the float original answers.

    Attributes:
        model: the benchmark model.
        path: its file.
        samples: calibration and scoring rows.
        calibration: the file with the calibration rows.
        outputs: of the original on the scoring rows.
        hidden: paths that must not be printed, and what to print for each.
    """

    model: BenchmarkModel
    path: Path
    samples: Samples
    calibration: Path
    outputs: Arrays
    hidden: dict[str, str]

    def words(self, setting: Setting, seed: int) -> list[str]:
        """Return the options of the command."""
        rows = len(next(iter(self.samples.calibration.values())))
        return words(setting, seed, rows, classes=self.samples.labels is not None)


def compiled(subject: Subject, setting: Setting, seed: int, folder: Path) -> ToolRun:
    """Run the command, or the rival, on a model."""
    if setting.kind == RIVAL:
        return run_rival(INT4, subject.path, subject.calibration, folder)
    asked = subject.words(setting, seed)
    if setting.kind == PLAIN:
        recipe = folder / "ends.toml"
        recipe.write_text(ends_in_eight_bits(subject.path), encoding="utf-8")
        asked += ["--config", str(recipe)]
    return run_with_words(setting.label, subject.path, subject.calibration, asked, folder / "compiled")


def scored(subject: Subject, setting: Setting, seed: int, tool: ToolRun) -> Run:
    """Return a run with everything that its file and its report say."""
    asked = [] if setting.kind == RIVAL else subject.words(setting, seed)
    run = Run(
        model=subject.model.name,
        setting=setting,
        seed=seed,
        command=" ".join(asked),
        wall_seconds=tool.measured.wall_seconds,
        peak_bytes=tool.measured.peak_bytes,
        notes=note(tool.notes, subject.hidden),
    )
    if tool.model is None:
        return run
    try:
        outputs = run_rows(tool.model, subject.samples.scoring)
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        return replace(run, notes=f"{run.notes}; does not run: {note(str(error), subject.hidden)}")
    run = replace(run, levels_db=output_levels(subject.outputs, outputs), file_bytes=tool.model.stat().st_size)
    if subject.samples.labels is not None:
        name, labels = next(iter(subject.outputs)), subject.samples.labels
        original = answers(subject.outputs[name], labels)
        run = with_answers(run, original, change(original, answers(outputs[name], labels)))
    return run if setting.kind == RIVAL else _with_facts(run, subject, tool.model)


def _with_facts(run: Run, subject: Subject, model: Path) -> Run:
    held = storage(model, subject.path)
    wrong = unexpected_sizes(held, model.with_name("plan.json"))
    return replace(
        run,
        mean_bits=held.mean_bits,
        within=held.within(run.setting.width),
        wrong_sizes=tuple(wrong),
        packed=len(held.packed),
        unpacking_each=held.unpacking_each,
        **report_facts(model.parent),
    )


def subjects(arguments: Arguments, scratch: Path) -> Iterator[Subject]:
    """Yield the models that are wanted and available."""
    for model in MODELS:
        if arguments.models and model.name not in arguments.models:
            continue
        folder = scratch / model.name
        folder.mkdir()
        path = model.locate(arguments.data, folder)
        if path is None:
            progress(f"{model.name}: skipped, {model.file} is not there")
            continue
        samples = model.samples(arguments.data or scratch)
        calibration = folder / "calibration.npz"
        save_arrays(calibration, samples.calibration)
        hidden = {str(scratch): "SCRATCH", str(REPOSITORY): "REPOSITORY"}
        hidden |= {str(arguments.data): "ROOT"} if arguments.data else {}
        yield Subject(model, path, samples, calibration, run_rows(path, samples.scoring), hidden)


def evaluate(subject: Subject, arguments: Arguments, keep: Path) -> None:
    """Run all settings on one model, but for those that are kept, and keep their runs and files."""
    for setting in arguments.settings:
        if setting.kind == PLAIN and not ends_in_eight_bits(subject.path):
            continue
        for seed in arguments.seeds[:1] if setting.kind == RIVAL else arguments.seeds:
            kept = kept_path(keep, subject.model, setting, seed)
            if kept.is_file():
                continue
            with TemporaryDirectory(prefix="run-", dir=keep) as folder:
                tool = compiled(subject, setting, seed, Path(folder))
                run = scored(subject, setting, seed, tool)
                if run.scored and tool.model is not None:
                    copyfile(tool.model, kept.with_suffix(".onnx"))
            save_run(run, kept)
            loss = f"{run.change.points:+.2f} points" if run.change else str(run.levels_db)
            progress(f"{subject.model.name} W{setting.width} {setting.label} seed {seed}: {loss} {run.notes}")


def measure_latencies(subject: Subject, runs: Sequence[Run], keep: Path) -> None:
    """Time the files of the first seed that are not fine-tuned against the one in 8 bits, and keep the ratios."""
    own = {s: r[0] for s, r in tables.cells(runs, subject.model.name).items() if r[0].scored and not s.minutes}
    chosen = {s: r for s, r in own.items() if s.kind in (MIXED, RIVAL) and s != FULL}
    kept = keep / f"{subject.model.name}-latency.json"
    names = {f"W{s.width}A8 `{s.label}`": r for s, r in chosen.items()}
    if FULL not in own or not names or (kept.is_file() and set(names) <= set(json.loads(kept.read_text()))):
        return
    paths = [kept_path(keep, subject.model, r.setting, r.seed) for r in (own[FULL], *names.values())]
    sessions = [open_session(path.with_suffix(".onnx")) for path in paths]
    sessions.append(open_session(subject.path))
    ratios = latency_ratios(sessions, next(feeds(subject.samples.scoring)))
    found = {name: asdict(ratio) for name, ratio in zip([*names, "float original"], ratios[1:], strict=True)}
    kept.write_text(json.dumps(found), encoding="utf-8")


def report(keep: Path, command: str) -> str:
    """Return the report of everything that is kept."""
    runs = [load_run(path) for path in sorted(keep.glob("*-s*.json"))]
    models = [model for model in MODELS if any(run.model == model.name for run in runs)]
    latencies = {}
    for model in models:
        kept = keep / f"{model.name}-latency.json"
        if kept.is_file():
            entries = json.loads(kept.read_text(encoding="utf-8"))
            latencies[model.name] = {name: LatencyRatio(**ratio) for name, ratio in entries.items()}
    notes = [
        f"- {r.model}, W{r.setting.width}A8 `{r.setting.label}`, seed {r.seed}: {r.notes}" for r in runs if r.notes
    ]
    notes += [f"- {r.model}, {r.setting.slug}, seed {r.seed}: {text}" for r in runs for text in r.wrong_sizes]
    notes += [
        f"- {r.model}, W{r.setting.width}A8 `{r.setting.label}`, seed {r.seed}: {'; '.join(r.searches)}"
        for r in runs
        if r.searches
    ]
    sections = [
        _INTRODUCTION,
        environment(command),
        tables.reach_section(runs, models),
        "## Losses\n",
        *(tables.loss_section(model, tables.cells(runs, model.name)) for model in models),
        tables.alone_section(runs, models),
        tables.size_section(runs, models),
        tables.latency_section(latencies),
        tables.contest_section(runs, models),
        tables.time_section(runs, models),
        "## Notes\n\n" + "\n".join(wrapped(text) for text in notes) + "\n" if notes else "",
        "## Commands\n\n" + commands(runs),
    ]
    return "\n".join(filter(None, sections))


def commands(runs: Sequence[Run]) -> str:
    """Return the command of each setting, as it was for the first model and seed that had it."""
    first: dict[Setting, Run] = {}
    for run in runs:
        if run.setting.kind != RIVAL:
            first.setdefault(run.setting, run)
    lines = []
    for setting in sorted(first, reverse=True):
        run = first[setting]
        lines.append(f"# W{setting.width}A8 {setting.label} ({run.model}, seed {run.seed})")
        lines.append(f"$ qcompile MODEL --data ROWS.npz {run.command}")
    return "\n".join(["```", *lines, "```\n"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the suite and print or write its report."""
    arguments = parse_arguments(argv)
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        scratch = Path(folder)
        keep = arguments.keep or scratch / "kept"
        keep.mkdir(parents=True, exist_ok=True)
        for subject in subjects(arguments, scratch):
            progress(f"{subject.model.name}: {subject.model.rows}")
            evaluate(subject, arguments, keep)
            runs = [load_run(path) for path in sorted(keep.glob("*-s*.json"))]
            measure_latencies(subject, runs, keep)
        text = report(keep, arguments.command)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
