"""Counts the instructions of compiled models on emulated ARM boards and prints markdown tables.

Usage: python -m benchmarks.arm_instructions [--data ROOT] [--models a,b] [--profiles a,b] [--out FILE.md] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.compiler import compile_for_board
from benchmarks.models import CNN_MODELS, PUBLIC_MODELS, BenchmarkModel
from benchmarks.process import REPOSITORY, ToolRun
from benchmarks.readers import save_arrays
from benchmarks.rivals import run_rival
from benchmarks.tables import environment, markdown_table, note, wrapped
from qcompiler.counts import InstructionCounts
from qcompiler.inspection.profiling import one_sample
from qcompiler.model.read import read_source, to_ir
from qcompiler.runtime.emulation.board import BOARDS
from qcompiler.runtime.emulation.build import Emulator, prepare_emulator
from qcompiler.runtime.emulation.run import EmulatedJob, run_emulated
from qcompiler.runtime.gate_process import write_samples

MODELS = (*PUBLIC_MODELS, *CNN_MODELS)
FLOAT, INTEGER, PLACED, RIVAL = "float", "all int8", "qcompile -O2", "ORT minmax"
REPEATS_TO, LEAST_DIFFERENCE = 0.002, 5000
"""Two counts of one model differ by less than this share and so many instructions: within them, they are equal."""

_INTRODUCTION = """# Instructions on ARM

Written by `benchmarks/arm_instructions.py`; do not edit. Instructions of one run, batch 1, one thread, counted under
qemu on the boards of [emulation.md](emulation.md). They are counts, no times: they ignore caches, memory and how many
instructions a core starts at once, and a ratio of counts is no speedup.

- float: the original. all int8: `qcompile -O1 --target arm`, everything in integers that ONNX Runtime has a kernel for.
- `-O2`: `qcompile -O2 --verify emulate`, placed by instructions on that board ([placement.md](placement.md)).
- ORT: `onnxruntime.quantization.quantize_static`, QDQ, uint8 activations, per-channel int8 weights, min-max.
- kernels: the 8-bit multiply instructions of the `-O2` file, in thousands: widening, dot or matrix.
- at or below both: `-O2` takes no more instructions than the all-int8 file and than float, but for the 0.2 % and
  5000 instructions that counts of one file may differ by.

All tools saw the same calibration samples. Every file ran the first of them.
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line.

    Attributes:
        data: the data folder; None runs the public part only.
        models: names to run; empty means all.
        profiles: boards to count on.
        out: where to write the report; None prints it.
        keep: folder of finished models, which are not run again; None keeps nothing.
    """

    data: Path | None
    models: tuple[str, ...]
    profiles: tuple[str, ...]
    out: Path | None
    keep: Path | None

    @property
    def command(self) -> str:
        """Return the command to repeat this run, without the machine's paths."""
        parts = ["python -m benchmarks.arm_instructions"]
        parts += ["--data ROOT"] if self.data else []
        parts += [f"--models {','.join(self.models)}"] if self.models else []
        parts += [f"--profiles {','.join(self.profiles)}"] if self.profiles != tuple(BOARDS) else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class BoardResult:
    """What was counted of one model on one board.

    Attributes:
        board: which one.
        placed_for: the board that the placement was counted on: one of the same instructions.
        counts: contender -> instructions of one run; a contender that failed is missing.
    """

    board: str
    placed_for: str
    counts: Mapping[str, InstructionCounts]

    def ratio(self, over: str, name: str = PLACED) -> float | None:
        """Return the instructions of one contender over those of another, None if either failed."""
        if name not in self.counts or over not in self.counts:
            return None
        return self.counts[name].total / self.counts[over].total

    def at_or_below(self, *others: str) -> bool:
        """Return whether the placed model takes no more instructions than others, as far as counts repeat."""
        if not {PLACED, *others} <= self.counts.keys():
            return False
        least = min(self.counts[name].total for name in others)
        return self.counts[PLACED].total <= least * (1 + REPEATS_TO) + LEAST_DIFFERENCE


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """All boards of one model, and what the tools said."""

    model: BenchmarkModel
    boards: Sequence[BoardResult]
    notes: Sequence[str]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Return the parsed command line; unknown names end the program with the list of known ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm_instructions", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data folder; default: the public part only")
    parser.add_argument("--models", default="", metavar="A,B", help="names of the models to run; default: all")
    parser.add_argument("--profiles", default=",".join(BOARDS), metavar="A,B", help="boards; default: all")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the report here instead of printing")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep finished models here and go on from them")
    given = parser.parse_args(argv)
    asked = {"models": given.models.split(","), "profiles": given.profiles.split(",")}
    chosen = {kind: tuple(filter(None, names)) for kind, names in asked.items()}
    for kind, known in (("models", [m.name for m in MODELS]), ("profiles", list(BOARDS))):
        if unknown := [name for name in chosen[kind] if name not in known]:
            parser.error(f"unknown {kind}: {', '.join(unknown)}; known: {', '.join(known)}")
    if given.data and not given.data.is_dir():
        parser.error(f"--data: {given.data} is no folder")
    data = given.data.resolve() if given.data else None
    return Arguments(data, chosen["models"], chosen["profiles"], given.out, given.keep)


def progress(text: str) -> None:
    """Print a line about what is being done, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def stand_in(profile: str) -> str:
    """Return the board that is compiled for: the last one with the same features, which runs the same kernels."""
    return [board.name for board in BOARDS.values() if board.features == BOARDS[profile].features][-1]


def evaluate(model: BenchmarkModel, path: Path, arguments: Arguments, scratch: Path, emulator: Emulator) -> ModelCounts:
    """Run all tools on one model and count what they wrote on every board."""
    calibration = scratch / "calibration.npz"
    save_arrays(calibration, model.samples(arguments.data or scratch).calibration)
    # The table of the default profile keeps nothing in float for the sake of a processor.
    shared = {INTEGER: compile_for_board("cortex-a76", path, calibration, scratch, effort=1)}
    shared[RIVAL] = run_rival("minmax", path, calibration, scratch)
    placed = {
        board: compile_for_board(board, path, calibration, scratch, effort=2)
        for board in dict.fromkeys(stand_in(profile) for profile in arguments.profiles)
    }
    boards = []
    for profile in arguments.profiles:
        run = placed[stand_in(profile)]
        known = reported(profile, run) if stand_in(profile) == profile else {}
        files = {FLOAT: path, PLACED: run.model, **{name: tool.model for name, tool in shared.items()}}
        left = {name: file for name, file in files.items() if file is not None and name not in known}
        counted = {**known, **count(profile, left, path, calibration, emulator)}
        boards.append(BoardResult(profile, stand_in(profile), {n: counted[n] for n in files if n in counted}))
        progress(f"  {profile}: {json.dumps({name: c.total for name, c in boards[-1].counts.items()})}")
    tools = {**shared, **{f"{PLACED} {board}": run for board, run in placed.items()}}
    return ModelCounts(model, boards, [f"{name}: {run.notes}" for name, run in tools.items() if run.notes])


def reported(profile: str, run: ToolRun) -> dict[str, InstructionCounts]:
    """Return what the compiler itself counted on a board, of the original and of its result."""
    path = run.model.with_name("report.json") if run.model else None
    if path is None or not path.is_file():
        return {}
    boards = json.loads(path.read_text(encoding="utf-8"))["measured"].get("emulated", [])
    found = next((board for board in boards if board["board"] == profile), None)
    if found is None:
        return {}
    return {FLOAT: InstructionCounts(**found["original"]), PLACED: InstructionCounts(**found["result"])}


def count(
    profile: str, files: Mapping[str, Path], original: Path, calibration: Path, emulator: Emulator
) -> dict[str, InstructionCounts]:
    """Return the instructions of one run of every file.

    Raises:
        RuntimeError: one of the files does not run on the board.
    """
    with TemporaryDirectory(prefix="counting-") as folder:
        write_samples(one_sample(to_ir(read_source(original)), str(calibration)), Path(folder))
        job = EmulatedJob(models=files, counts=dict.fromkeys(files, 0), samples=Path(folder), nodes=False)
        found = run_emulated(emulator, BOARDS[profile], job)
    if found.failure:
        raise RuntimeError(f"{found.culprit or 'ONNX Runtime'} on {profile}: {found.failure}")
    return {name: counted.runs[-1] for name, counted in found.models.items()}


def load_kept(path: Path, model: BenchmarkModel) -> ModelCounts:
    """Return the counts that ``save_kept`` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    boards = [
        BoardResult(
            entry["board"], entry["placed_for"], {n: InstructionCounts(**c) for n, c in entry["counts"].items()}
        )
        for entry in found["boards"]
    ]
    return ModelCounts(model, boards, found["notes"])


def save_kept(result: ModelCounts, path: Path) -> None:
    """Keep the counts of one model."""
    document = {"boards": [asdict(board) for board in result.boards], "notes": list(result.notes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def million(number: int) -> str:
    """Return a count in millions."""
    return f"{number / 1e6:.2f}"


def board_section(board: str, results: Sequence[ModelCounts]) -> str:
    """Return the table of one board."""
    header = (
        "model",
        "float M",
        "all int8 M",
        "ORT M",
        "-O2 M",
        "-O2 / float",
        "-O2 / all int8",
        "-O2 / ORT",
        "kernels k",
        "at or below both",
    )
    rows = []
    for result in results:
        for found in result.boards:
            if found.board == board:
                totals = [_total(found, name) for name in (FLOAT, INTEGER, RIVAL, PLACED)]
                ratios = [_ratio(found.ratio(name)) for name in (FLOAT, INTEGER, RIVAL)]
                verdict = "yes" if found.at_or_below(FLOAT, INTEGER) else "no"
                rows.append([result.model.name, *totals, *ratios, _kernels(found.counts.get(PLACED)), verdict])
    same = stand_in(board)
    about = f"`{board}` has the instructions of `{same}`: its column `-O2` is the file that was placed on `{same}`, "
    about += "and every file was counted on both."
    return f"## {board}\n\n{wrapped(about) + chr(10) * 2 if same != board else ''}{markdown_table(header, rows)}"


def _total(found: BoardResult, name: str) -> str:
    return million(found.counts[name].total) if name in found.counts else "-"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"


def _kernels(counts: InstructionCounts | None) -> str:
    if counts is None:
        return "-"
    classes = {"widening": counts.widening, "dot": counts.dot, "matrix": counts.matrix}
    return ", ".join(f"{name} {number / 1e3:.0f}" for name, number in classes.items() if number) or "none"


def summary(results: Sequence[ModelCounts]) -> str:
    """Return how many placements are at or below both extremes and below the contender, board by board."""
    boards = dict.fromkeys(found.board for result in results for found in result.boards)
    rows = []
    for board in boards:
        found = [one for result in results for one in result.boards if one.board == board]
        both = sum(one.at_or_below(FLOAT, INTEGER) for one in found)
        rival = [one for one in found if RIVAL in one.counts]
        below = sum(one.at_or_below(RIVAL) for one in rival)
        rows.append([board, f"{both} of {len(found)}", f"{below} of {len(rival)}"])
    return markdown_table(("board", "at or below all int8 and float", "at or below ORT"), rows)


def results_of(arguments: Arguments, emulator: Emulator, scratch: Path) -> list[ModelCounts]:
    """Count all models that are wanted and available, but for those that are kept."""
    hidden = {str(scratch): "SCRATCH", str(REPOSITORY): "REPOSITORY", str(arguments.data or scratch): "ROOT"}
    results = []
    for model in MODELS:
        if arguments.models and model.name not in arguments.models:
            continue
        kept = arguments.keep / f"{model.name}.json" if arguments.keep else None
        if kept is not None and kept.is_file():
            results.append(load_kept(kept, model))
            continue
        folder = scratch / model.name
        folder.mkdir()
        path = model.locate(arguments.data, folder)
        if path is None:
            progress(f"{model.name}: skipped, {model.file} is not there")
            continue
        progress(f"{model.name}: {model.rows}")
        found = evaluate(model, path, arguments, folder, emulator)
        results.append(replace(found, notes=[note(text, hidden) for text in found.notes]))
        if kept is not None:
            save_kept(results[-1], kept)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Run the suite and print or write its report."""
    arguments = parse_arguments(argv)
    emulator = prepare_emulator(progress)
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        results = results_of(arguments, emulator, Path(folder))
    notes = [wrapped(f"- {result.model.name}: {text}") for result in results for text in result.notes]
    sections = [_INTRODUCTION, environment(arguments.command), "## Summary\n", summary(results)]
    sections += [board_section(board, results) for board in arguments.profiles]
    sections += ["## Notes\n", "\n".join(notes) + "\n"] if notes else []
    report = "\n".join(sections)
    if arguments.out:
        arguments.out.write_text(report, encoding="utf-8")
    else:
        print(report)


if __name__ == "__main__":
    main()
