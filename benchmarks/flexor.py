"""Compiles ResNet-20 to a fraction of a bit a weight and scores it on rows that no choice saw; prints markdown.

Usage: python -m benchmarks.flexor --data ROOT [--bits 1.0,0.8,0.6] [--steps N] [--out FILE.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime

from benchmarks.answers import answers, bootstrap_interval, change, losses_by_row, run_rows
from benchmarks.compiler import run_with_words
from benchmarks.low_bits import budget_words, ends_in_eight_bits
from benchmarks.models import BenchmarkModel, all_of_resnet20
from benchmarks.process import REPOSITORY
from benchmarks.readers import save_arrays
from benchmarks.tables import deliver, environment, markdown_table, note

WHOLE = "1.0"
"""A network that sums nothing: binary weights, trained the same way."""
MOST_BEHIND, LEAST_TOP1 = 1.0, 70.0
"""What 0.8 bit may lose against a whole bit in points, and the top-1 that it is to exceed."""

_INTRODUCTION = """# FleXOR: figures

Every file was compiled by the command in a fresh process from the calibration images without labels, which an eighth
of is kept for the gate, and scored with ONNX Runtime on images that nothing else has read. The first and the last
layer have 8 bits, all others one bit out of an XOR network; 1.0 is a network that sums nothing. Activations have 8
bits. `as planned` says whether the codes that ONNX Runtime decodes from the file are those of the plan, bit for bit.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flexor", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="ROOT", required=True, help="data folder")
    parser.add_argument("--bits", default=f"{WHOLE},0.8,0.6", metavar="B,B", help="stored bits; default: 1.0,0.8,0.6")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="mini-batches of training; default: its own")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the report here instead of printing")
    given = parser.parse_args(argv)
    given.bits = given.bits.split(",")
    return given


def words_for(bits: str, rows: int, recipe: Path, steps: int) -> list[str]:
    """Return the options of the command: floors that stop nothing, so that no repair adds bits."""
    from qcompiler.passes import TRAINING_WORDS, WITH_DATA

    found = ["--target", "x86", "--bits", f"W{bits}A8", "--config", str(recipe), "--min-sqnr=-1000"]
    found += ["--max-latency-ratio", "1000", "--min-agreement", "0", *budget_words(rows)]
    if not steps:
        return found
    training = [name.replace("}", f",steps={steps}}}") for name in TRAINING_WORDS]
    return [*found, "--passes", ",".join([*WITH_DATA, *training])]


def rows_of(model: BenchmarkModel, given: argparse.Namespace, scratch: Path) -> Iterator[list[str]]:
    """Yield a row of the table for every number of bits."""
    path = model.locate(given.data, scratch)
    if path is None:
        raise SystemExit(f"{model.file} is not in {given.data}")
    samples, calibration, recipe = model.samples(given.data), scratch / "calibration.npz", scratch / "qcompile.toml"
    save_arrays(calibration, samples.calibration)
    recipe.write_text(ends_in_eight_bits(path), encoding="utf-8")
    rows = len(next(iter(samples.calibration.values())))
    reference = run_rows(path, samples.scoring)
    name = next(iter(reference))
    hidden = {str(scratch): "SCRATCH", str(REPOSITORY): "REPOSITORY", str(given.data): "ROOT"}
    whole: float | None = None
    for bits in given.bits:
        asked = words_for(bits, rows, recipe, given.steps)
        tool = run_with_words(model.name, path, calibration, asked, scratch / f"run-{bits}")
        if tool.model is None or samples.labels is None:
            yield [bits, "-", "-", "-", "-", "-", "-", note(tool.notes, hidden)]
            continue
        found = answers(run_rows(tool.model, samples.scoring)[name], samples.labels)
        changed = change(answers(reference[name], samples.labels), found)
        low, high = bootstrap_interval(losses_by_row([changed]))
        top1 = 100.0 * float(found.right.mean())
        whole = top1 if bits == WHOLE else whole
        interval = f"{changed.points:+.2f} ({low:+.2f} to {high:+.2f})"
        size, planned = tool.model.stat().st_size, "yes" if decodes_as_planned(tool.model) else "NO"
        cells = [bits, f"{top1:.2f} %", interval, f"{size:,}", f"{coded_bytes(tool.model.parent):,}", planned]
        yield [*cells, f"{tool.measured.wall_seconds:.0f} s", verdict(bits, top1, whole)]
        print(f"{bits} bit: {top1:.2f} %, {size} bytes", file=sys.stderr, flush=True)


def decodes_as_planned(model: Path) -> bool:
    """Return whether the codes that ONNX Runtime decodes are those of the plan, for every weight in code words."""
    plan = json.loads((model.parent / "plan.json").read_text(encoding="utf-8"))
    arrays = np.load(model.parent / "plan.npz")
    coded = {t["name"]: arrays[t["codes"]] for t in plan["tensors"] if "encoding" in t}
    proto = onnx.load(model)
    made = {name: node for node in proto.graph.node for name in node.output}
    codes = [n.input[0] for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in made]
    decoded = [name for name in codes if made[name].op_type == "Reshape"]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in decoded)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    feed = {first.name: np.zeros([d if isinstance(d, int) else 1 for d in first.shape], np.float32)}
    found = {value.tobytes() for value in session.run(decoded, feed)}
    return len(decoded) == len(coded) > 0 and found == {codes.tobytes() for codes in coded.values()}


def coded_bytes(folder: Path) -> int:
    """Return the bytes of all streams of code words, from the report."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    found = next((p for p in report["passes"] if p["name"] == "pack-xor"), None)
    return 0 if found is None else int(next(m["value"] for m in found["metrics"] if m["name"] == "stored"))


def verdict(bits: str, top1: float, whole: float | None) -> str:
    """Return whether the goals of 0.8 bit are reached, in words; "" for other rates."""
    if bits != "0.8":
        return ""
    parts = [f"above {LEAST_TOP1:g} %: {'reached' if top1 > LEAST_TOP1 else 'missed'}"]
    if whole is not None:
        behind = whole - top1
        said = "reached" if behind <= MOST_BEHIND else "missed"
        parts.append(f"within {MOST_BEHIND:g} point of a whole bit: {said} ({behind:+.2f})")
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print or write its report."""
    given = parse_arguments(argv)
    given.data = given.data.resolve()
    header = ("bits", "top-1", "loss (95 %)", "file", "streams", "as planned", "compiling", "")
    with TemporaryDirectory() as scratch:
        rows = list(rows_of(all_of_resnet20(), given, Path(scratch)))
    steps = f" --steps {given.steps}" if given.steps else ""
    parts = [
        _INTRODUCTION,
        environment(f"python -m benchmarks.flexor --data ROOT{steps}"),
        markdown_table(header, rows),
    ]
    deliver(parts, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
