"""What a product by a constant matrix costs in every form that ONNX Runtime has, by rows and by size.

    python -m benchmarks.matmuls

prints, side by side in one run, the latency of each form over that of the float product and its error; docs/matmuls.md
and the tables of the targets quote it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.tables import markdown_table
from qcompiler.plan import Precision
from qcompiler.protocols import MatMulForm
from qcompiler.runtime.machine import machine_name
from qcompiler.runtime.matmul_forms import FLOAT_FORM, MatMulShape, form_costs, form_errors, ratios
from qcompiler.runtime.sessions import runtime_version

WIDTHS = (384, 1024, 2048, 4096)
ROWS = (1, 8, 32, 128)
BLOCKS = (32, 64, 128)
SECONDS = 1.5
ERROR_SHAPE = MatMulShape(32, 1024, 256)


def all_forms() -> list[MatMulForm]:
    """Return the forms of the table, float first."""
    blockwise = [
        MatMulForm(Precision.BLOCKWISE, bits, block, level)
        for bits in (2, 4, 8)
        for level in (0, 4)
        for block in BLOCKS
    ]
    return [FLOAT_FORM, MatMulForm(Precision.DYNAMIC), MatMulForm(Precision.INTEGER), *blockwise]


def table(rows: Sequence[int], widths: Sequence[int], seconds: float) -> str:
    """Return latency ratios and errors of all forms as a table in Markdown."""
    forms = all_forms()
    shapes = [MatMulShape(m, width, width) for m in rows for width in widths]
    found = {shape: ratios(form_costs(forms, shape, seconds=seconds)) for shape in shapes}
    errors = form_errors(forms, ERROR_SHAPE)
    header = ["form", *(f"{s.rows} x {s.inputs}" for s in shapes), "error %"]
    lines = [
        [
            form.describe(),
            *(f"{found[s][form]:.2f}" if form in found[s] else "-" for s in shapes),
            _percent(errors[form]),
        ]
        for form in forms
    ]
    return markdown_table(header, lines)


def _percent(error: float) -> str:
    return f"{100 * error:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per shape, all forms together")
    given = parser.parse_args()
    print(f"ONNX Runtime {runtime_version()}, {machine_name()}, 1 thread; latency over that of the float product.\n")
    print(table(given.rows, given.widths, given.seconds))


if __name__ == "__main__":
    main()
