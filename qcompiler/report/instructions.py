"""Instructions (emulated) as text: by board, by class and by node. They are counts, and are never told as a time."""

from __future__ import annotations

from qcompiler.counts import EmulatedRun, InstructionCounts, NodeInstructions
from qcompiler.report.words import shorten

TITLE = "Instructions per run (emulated)"
MEANING = (
    "Counts under qemu, not times: they ignore caches, memory and how many instructions a core runs at once. "
    "Small nodes are uncertain by a few thousand."
)
BOARD_COLUMNS = ("board", "model", "instructions", "ratio", "dot", "matrix", "widening", "FMLA")
FIGURES = BOARD_COLUMNS[2:]


def count_text(number: int | None) -> str:
    """Return a count with three figures, such as ``3.87 M``; ``-`` for none."""
    if number is None:
        return "-"
    for factor, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= factor:
            value = number / factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    return str(number)


def board_rows(run: EmulatedRun) -> list[tuple[str, ...]]:
    """Return the original and the result on a board, one row each, in the order of ``BOARD_COLUMNS``."""
    return [
        (run.board, "original", *_cells(run.original, "")),
        ("", "result", *_cells(run.result, f"{run.ratio:.3f}x")),
    ]


def _cells(counts: InstructionCounts, ratio: str) -> tuple[str, ...]:
    classes = (counts.dot, counts.matrix, counts.widening, counts.fmla)
    return (count_text(counts.total), ratio, *(count_text(number) for number in classes))


def agreement_phrase(run: EmulatedRun) -> str:
    """Return how the outputs compare with this machine's: the worst agreement first."""
    order = ("differs", "requantized float", "float rounding", "identical")
    found = [name for name in order if any(output.agreement == name for output in run.outputs)]
    if not found:
        return "not compared"
    if found[0] == "identical":
        return "identical bit for bit"
    worst = max(output.max_relative for output in run.outputs)
    return f"{found[0]}, at most {worst:.2g} of the largest value"


def footnotes(run: EmulatedRun) -> list[str]:
    """Return what has to be said about a board beside its figures."""
    found = [f"outputs on {run.board}: {agreement_phrase(run)}", *run.notes]
    if run.float_nodes:
        names = ", ".join(shorten(name, 40) for name in run.float_nodes[:3])
        more = f" and {len(run.float_nodes) - 3} more" if len(run.float_nodes) > 3 else ""
        found.append(f"in float on {run.board}: {names}{more}")
    return found


def node_phrase(node: NodeInstructions) -> str:
    """Return a node's instructions before and after."""
    before, after = (count_text(counts.total if counts else None) for counts in (node.before, node.after))
    return f"{before} -> {after}"
