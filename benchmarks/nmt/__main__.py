"""Trains, exports, compiles, translates and scores, and prints or writes the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.nmt.contenders import CONTENDERS, CONTROL, FLOAT, MINUTES, Contender, Originals, compress, prepare
from benchmarks.nmt.decisions import decisions_of
from benchmarks.nmt.report import Entry, report
from benchmarks.nmt.scoring import Translation, load, total_bytes
from benchmarks.nmt.sharing import share
from benchmarks.process import run_measured

PARTS = ("val", "test2016")
CONTROL_MINUTES = 2.0 * MINUTES
"""Of CPU time: what distillation takes on its two threads."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line.

    Attributes:
        data: the folder that has ``text/multi30k``.
        cache: where training, compiled files and scores are kept.
        contenders: what to run.
        seeds: of the compilations.
        parts: what to translate.
        beam: hypotheses; 1 is greedy.
        out: the file for the report, None to print it.
    """

    data: Path
    cache: Path
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    parts: tuple[str, ...]
    beam: int
    out: Path | None


def parse_arguments(argv: Sequence[str] | None) -> Arguments:
    """Return the command line; ends with a message where it makes no sense."""
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nmt", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that has text/multi30k")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="what is kept; default: %(default)s")
    parser.add_argument("--contenders", default=",".join(names), help="some of: %(default)s")
    parser.add_argument("--seeds", default="0", help="of the compilations, with commas between them")
    parser.add_argument("--parts", default="val", help="val (to choose by), test2016 (to report), or both")
    parser.add_argument("--beam", type=int, default=1, help="hypotheses of the search; 1 is greedy (default)")
    parser.add_argument("--out", type=Path, help="write the report to a file")
    given = parser.parse_args(argv)
    chosen = given.contenders.split(",")
    parts = tuple(given.parts.split(","))
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--contenders: no {unknown[0]}; there are {', '.join(names)}")
    if wrong := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: no {wrong[0]}; there are {', '.join(PARTS)}")
    if not (given.data / "text" / "multi30k").is_dir():
        parser.error(f"--data: {given.data} has no text/multi30k")
    starts = [contender.start for contender in CONTENDERS if contender.name in chosen]
    wanted = dict.fromkeys((FLOAT, *starts, *chosen))
    return Arguments(
        data=given.data.resolve(),
        cache=given.cache.resolve(),
        contenders=tuple(c for c in CONTENDERS if c.name in wanted),
        seeds=tuple(int(number) for number in given.seeds.split(",")),
        parts=parts,
        beam=given.beam,
        out=given.out,
    )


def default_cache() -> Path:
    """Return the folder for what programs can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompiler" / "nmt"


def originals(arguments: Arguments) -> tuple[Originals, dict[str, float]]:
    """Return the float files, trained and exported where they are not in the cache, and what training took."""
    from benchmarks.nmt.export import DECODER, ENCODER, WHOLE, export
    from benchmarks.nmt.training import Schedule, subwords, trained

    network, cost = trained(arguments.data, arguments.cache, Schedule())
    folder = arguments.cache / FLOAT
    if not all((folder / name).is_file() for name in (ENCODER, DECODER, WHOLE)):
        export(network, folder)
    return prepare(folder, subwords(arguments.data, arguments.cache), arguments.data), cost


def control(arguments: Arguments, folder: Path) -> tuple[Path, Path]:
    """Return the float files of the network that was trained on, with labels, for as long as others are distilled."""
    from benchmarks.nmt.export import export
    from benchmarks.nmt.training import Schedule, retrained

    longer = Schedule(minutes=CONTROL_MINUTES, peak=3e-4, warmup=50)
    encoder, decoder, _ = export(retrained(arguments.data, arguments.cache, Schedule(), longer)[0], folder)
    return encoder, decoder


def scored(arguments: Arguments, files: Sequence[Path], part: str, folder: Path) -> Translation | str:
    """Return a part translated and scored in a process of its own, or why that failed; kept in the folder."""
    kept = folder / f"{part}-beam{arguments.beam}.json"
    if not kept.is_file():
        words = [*map(str, files[:2]), str(arguments.cache / "subwords.json"), str(arguments.data), part]
        command = [sys.executable, "-m", "benchmarks.nmt.scoring", *words, str(arguments.beam), str(kept)]
        measured = run_measured(command, folder)
        if measured.exit_code:
            return f"{part}: {measured.failure}"
    return load(kept)


def evaluate(arguments: Arguments, contender: Contender, seed: int, base: Originals) -> Entry:
    """Compress with one contender and score it; what is kept is not done again."""
    folder = contender.folder(arguments.cache, seed)
    folder.mkdir(parents=True, exist_ok=True)
    if contender.name in (FLOAT, CONTROL):
        encoder, decoder = (base.encoder, base.decoder) if contender.name == FLOAT else control(arguments, folder)
        files = share({"encoder": encoder, "decoder": decoder}, folder / "shared")
        notes, seconds = [], 0.0
    else:
        record = folder / "run.json"
        if not record.is_file():
            found = compress(contender, base, seed, folder)
            wall = sum(run.measured.wall_seconds for run in found.runs)
            said = [run.notes for run in found.runs if run.notes]
            kept = {"files": [str(path) for path in found.files], "notes": said, "seconds": wall}
            record.write_text(json.dumps(kept), encoding="utf-8")
        kept = json.loads(record.read_text(encoding="utf-8"))
        files, notes, seconds = tuple(map(Path, kept["files"])), kept["notes"], kept["seconds"]
        if not files:
            return Entry(contender.name, seed, 0, seconds, {}, tuple(notes))
    results = {part: scored(arguments, files, part, folder) for part in arguments.parts}
    notes = [*notes, *(text for text in results.values() if isinstance(text, str))]
    good = {part: found for part, found in results.items() if not isinstance(found, str)}
    decided = decisions_of(folder / "whole") if contender.words is not None else None
    return Entry(contender.name, seed, total_bytes(files), seconds, good, tuple(notes), decided)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    arguments = parse_arguments(argv)
    base, cost = originals(arguments)
    entries = []
    for contender in arguments.contenders:
        for seed in arguments.seeds if contender.words is not None else arguments.seeds[:1]:
            entries.append(evaluate(arguments, contender, seed, base))
            print(f"{contender.name} seed {seed}: {entries[-1].line()}", file=sys.stderr, flush=True)
    text = report(entries, cost, arguments.beam)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
