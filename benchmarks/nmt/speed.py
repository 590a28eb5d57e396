"""How long the compressed translators decode, against float in the same run: one sentence at a time, and many.

Contenders take turns, so that what else the machine does meets all of them, and the fastest of the turns counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.nmt.__main__ import default_cache
from benchmarks.nmt.contenders import CONTENDERS, FLOAT
from benchmarks.nmt.corpus import read_part
from benchmarks.nmt.decoding import open_sessions, translate
from benchmarks.nmt.training import subwords
from benchmarks.tables import markdown_table

WAYS = (("one sentence at a time", 1), ("50 sentences at a time", 50))


def fastest(runs: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Return the least CPU seconds of every run, all of them taking turns."""
    best = [float("inf")] * len(runs)
    for _ in range(turns):
        for number, run in enumerate(runs):
            started = time.process_time()
            run()
            best[number] = min(best[number], time.process_time() - started)
    return best


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of what is in the cache."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nmt.speed", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that has text/multi30k")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="as of benchmarks.nmt, which ran before")
    parser.add_argument("--sentences", type=int, default=50, help="of val, spread; default: %(default)s")
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    given = parser.parse_args(argv)
    cache = given.cache.resolve()
    names = [c for c in CONTENDERS if (c.folder(cache, 0) / "shared" / "decoder.onnx").is_file()]
    if not names or names[0].name != FLOAT:
        parser.error(f"{cache} has no float files; run python -m benchmarks.nmt first")
    folders = [contender.folder(cache, 0) / "shared" for contender in names]
    opened = [open_sessions(folder / "encoder.onnx", folder / "decoder.onnx") for folder in folders]
    tokenizer = subwords(given.data, cache)
    lines = read_part(given.data, "val").source
    chosen = lines[:: max(len(lines) // given.sentences, 1)][: given.sentences]
    columns = []
    for _, rows in WAYS:
        runs = [lambda s=s, rows=rows: translate(s, tokenizer, chosen, 1, rows) for s in opened]
        columns.append([1e3 * seconds / len(chosen) for seconds in fastest(runs, given.turns)])
    table = [
        (contender.name, *(f"{column[number]:.2f} ({column[number] / column[0]:.2f}x)" for column in columns))
        for number, contender in enumerate(names)
    ]
    print(f"Greedy search, CPU ms a sentence on one thread, fastest of {given.turns} turns, {len(chosen)} sentences:\n")
    print(markdown_table(("contender", *(way for way, _ in WAYS)), table))


if __name__ == "__main__":
    main()
