"""What a product by a constant matrix costs in every form that ONNX Runtime has, by rows and by size.

    python -m benchmarks.matmuls
    python -m benchmarks.matmuls --boards cortex-a72 cortex-a76 i8mm --rows 1 32 --widths 1024

The first prints, side by side in one run, the latency of each form over that of the float product and its error; the
second counts instructions on emulated boards instead. docs/matmuls.md and the tables of the targets quote both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from benchmarks.tables import markdown_table
from qcompiler.plan import Precision
from qcompiler.protocols import MatMulForm
from qcompiler.runtime.emulation.board import Board, find_board
from qcompiler.runtime.emulation.build import Emulator, prepare_emulator
from qcompiler.runtime.emulation.run import EmulatedJob, run_emulated
from qcompiler.runtime.machine import machine_name
from qcompiler.runtime.matmul_forms import (
    FLOAT_FORM,
    MatMulShape,
    form_costs,
    form_errors,
    form_model,
    ratios,
)
from qcompiler.runtime.sessions import runtime_version

WIDTHS = (384, 1024, 2048, 4096)
ROWS = (1, 2, 4, 8, 32, 128)
BLOCKS = (32, 64, 128)
SECONDS = 3.0
ERROR_SHAPE = MatMulShape(32, 1024, 256)
ALL_LEVELS = (0, 4)


def all_forms(levels: Sequence[int]) -> list[MatMulForm]:
    """Return the forms of the table, float first."""
    blockwise = [
        MatMulForm(Precision.BLOCKWISE, bits, block, level)
        for bits in (2, 4, 8)
        for level in levels
        for block in BLOCKS
    ]
    return [FLOAT_FORM, MatMulForm(Precision.DYNAMIC), MatMulForm(Precision.INTEGER), *blockwise]


def tables(rows: Sequence[int], widths: Sequence[int], levels: Sequence[int], seconds: float) -> Iterator[str]:
    """Yield the errors of all forms, then their latency ratios for every number of rows, as tables in Markdown."""
    forms = all_forms(levels)
    errors = form_errors(forms, ERROR_SHAPE)
    header = ("form", f"error, % of {ERROR_SHAPE.rows} x {ERROR_SHAPE.inputs} x {ERROR_SHAPE.outputs}")
    yield markdown_table(header, [[form.describe(), f"{100 * errors[form]:.2f}"] for form in forms])
    for count in rows:
        shapes = [MatMulShape(count, width, width) for width in widths]
        found = [ratios(form_costs(forms, shape, seconds=seconds)) for shape in shapes]
        lines = [[f.describe(), *(f"{r[f]:.2f}" if f in r else "-" for r in found)] for f in forms]
        yield markdown_table([f"{count} x", *(f"{s.inputs} x {s.outputs}" for s in shapes)], lines)


def board_tables(boards: Sequence[str], rows: Sequence[int], widths: Sequence[int]) -> Iterator[str]:
    """Yield the instructions of all forms over those of the float product for every board, as tables in Markdown."""
    emulator, forms = prepare_emulator(), all_forms(ALL_LEVELS[1:])
    shapes = [MatMulShape(count, width, width) for count in rows for width in widths]
    for name in boards:
        counted = [_counted(emulator, find_board(name), forms, shape) for shape in shapes]
        lines = [[f.describe(), *(f"{found[f]:.2f}" if f in found else "-" for found in counted)] for f in forms]
        yield markdown_table([name, *(f"{s.rows} x {s.inputs} x {s.outputs}" for s in shapes)], lines)


def _counted(
    emulator: Emulator, board: Board, forms: Sequence[MatMulForm], shape: MatMulShape
) -> dict[MatMulForm, float]:
    rng = np.random.default_rng(0)
    weight, data = (
        rng.standard_normal(s).astype(np.float32) for s in ((shape.inputs, shape.outputs), (shape.rows, shape.inputs))
    )
    with TemporaryDirectory(prefix="benchmarks-") as place:
        folder = Path(place)
        np.savez(folder / "00000.npz", x0=data)
        paths = {str(number): folder / f"{number}.onnx" for number in range(len(forms))}
        for form, path in zip(forms, paths.values(), strict=True):
            onnx.save(form_model(form, shape, weight), path)
        job = EmulatedJob(models=paths, counts=dict.fromkeys(paths, 1), samples=folder, nodes=False)
        found = run_emulated(emulator, board, job)
    if found.failure:
        raise SystemExit(f"{board.name}: {found.failure}")
    totals = {f: min(r.total for r in found.models[kind].runs) for f, kind in zip(forms, paths, strict=True)}
    return ratios({form: float(total) for form, total in totals.items()})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--levels", type=int, nargs="+", default=list(ALL_LEVELS), help="accuracy levels")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per shape, all forms together")
    parser.add_argument("--boards", nargs="+", default=[], help="count instructions on these instead")
    given = parser.parse_args()
    if given.boards:
        print(f"ONNX Runtime {runtime_version()}, instructions (emulated) over those of the float product.")
        for table in board_tables(given.boards, given.rows, given.widths):
            print(f"\n{table}", flush=True)
        return
    print(f"ONNX Runtime {runtime_version()}, {machine_name()}, 1 thread; latency over that of the float product.")
    for table in tables(given.rows, given.widths, given.levels, given.seconds):
        print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main()
