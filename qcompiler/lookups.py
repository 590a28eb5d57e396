"""The tables that a graph looks rows up in, how often each row is read, and counts that the user gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.errors import DataError, UsageError
from qcompiler.model.edit import all_nodes
from qcompiler.runtime.capture import Executor

FEWEST_ROWS = 256
"""Tables with fewer rows are left alone: their words and nodes cost more than they save."""

_MOVES = frozenset({"Cast", "Clip", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze"})
_MOVES |= {"Abs", "Add", "Max", "Min", "Mod", "Sub", "Transpose", "Unsqueeze", "Where"}
"""Operators between the indices that a user feeds and those that a table is read with."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A constant whose rows are looked up.

    Attributes:
        value: the constant, of shape (rows, columns).
        gathers: the nodes that look rows up.
        others: operators that read the whole table, such as a tied output projection.
    """

    value: ir.Value
    gathers: tuple[ir.Node, ...]
    others: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """Return the name of the constant."""
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns."""
        rows, columns = (0, 0) if self.value.const_value is None else self.value.const_value.shape.numpy()
        return rows, columns


def find_tables(model: ir.Model) -> tuple[Table, ...]:
    """Return the constants whose rows the inputs ask for, if they are large enough to be worth it, largest first."""
    found: dict[str, Table] = {}
    for node, _ in all_nodes(model):
        value = node.inputs[0] if node.op_type == "Gather" and node.domain in ("", "ai.onnx") else None
        if value is None or (value.name or "") in found or not _is_table(value):
            continue
        users = [use.node for use in value.uses()]
        gathers = tuple(n for n in users if n.op_type == "Gather" and looks_up_rows(n))
        rows_only = all(looks_up_rows(n) for n in users if n.op_type == "Gather")
        if gathers and rows_only and all(_reads_data(n.inputs[1]) for n in gathers):
            others = tuple(n for n in users if n not in gathers)
            found[value.name or ""] = Table(value, gathers, others)
    return tuple(sorted(found.values(), key=lambda t: (-t.shape[0] * t.shape[1], t.name)))


def looks_up_rows(node: ir.Node) -> bool:
    """Return True for a Gather of whole rows."""
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() in (0, -2)


def _reads_data(indices: ir.Value | None) -> bool:
    """Return True for indices that a user feeds; positions, which follow from shapes, are read all alike."""
    value = indices
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _MOVES:
            return False
        value = node.inputs[0] if node.inputs else None
    return value is not None and value.const_value is None


def _is_table(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
        return False
    shape = tensor.shape.numpy()
    return tensor.dtype is ir.DataType.FLOAT and len(shape) == 2 and shape[0] >= FEWEST_ROWS and shape[1] > 0


def count_readings(model: ir.Model, tables: tuple[Table, ...], samples: Dataset) -> dict[str, NDArray[np.float64]]:
    """Return how often every row of every table is read on samples: float64, shape (rows,), by table.

    Raises:
        DataError: the model does not run on a sample.
    """
    main = {o for node in model.graph for o in (*node.inputs, *node.outputs)}
    places = [(t, g.inputs[1].name or "") for t in tables for g in t.gathers if g.inputs[1] in main and g.inputs[1]]
    counts = {t.name: np.zeros(t.shape[0]) for t in tables}
    inputs = {v.name for v in model.graph.inputs}
    inner = sorted({ids for _, ids in places if ids not in inputs})
    executor = Executor(model, inner) if inner else None
    for index in range(len(samples)):
        feeds = samples[index]
        made = {**feeds, **(executor.run(feeds) if executor is not None else {})}
        for table, ids in places:
            rows = np.asarray(made[ids], np.int64).reshape(-1) if ids in made else np.zeros(0, np.int64)
            counts[table.name] += np.bincount(rows % table.shape[0], minlength=table.shape[0])
    return counts


def read_counts(path: Path) -> NDArray[np.float64]:
    """Return token counts from a file: ``.npy`` with one number per row, or JSON with a list of them.

    Raises:
        UsageError: the file cannot be read, or holds something else than counts.
    """
    try:
        if path.suffix.lower() == ".npy":
            counts = np.load(path, allow_pickle=False)
        else:
            counts = json.loads(path.read_text(encoding="utf-8"))
        found = np.asarray(counts, np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UsageError(f"--token-counts {path}: cannot be read as counts ({error}); give .npy or JSON") from error
    if found.ndim != 1 or not found.size or not np.isfinite(found).all() or (found < 0).any() or found.sum() <= 0:
        raise UsageError(f"--token-counts {path}: give one count per token, none negative, not all of them 0")
    return found


def fitted_counts(counts: NDArray[np.float64], path: Path, tables: tuple[Table, ...]) -> dict[str, NDArray[np.float64]]:
    """Return a file's counts for the tables of that many rows.

    Raises:
        UsageError: no table has that many rows: the counts are of another vocabulary.
    """
    sizes = {t.name: t.shape[0] for t in tables}
    found = {name: counts for name, rows in sizes.items() if rows == counts.size}
    if not found:
        known = ", ".join(f"'{name}' has {rows}" for name, rows in sizes.items()) or "there is no table"
        raise UsageError(f"--token-counts {path}: {counts.size} counts are of another vocabulary ({known} rows)")
    return found


def refuse_gate_counts(model: ir.Model, path: str | None, verification: Dataset) -> None:
    """Refuse counts that were taken on the samples that the gate verifies with.

    Raises:
        DataError: the counts of a file are exactly those of these samples.
        UsageError: the file cannot be read.
    """
    if path is None:
        return
    tables = find_tables(model)
    given = fitted_counts(read_counts(Path(path)), Path(path), tables)
    own = count_readings(model, tuple(t for t in tables if t.name in given), verification)
    for name, counts in given.items():
        if own[name].sum() and np.array_equal(own[name], counts):
            raise DataError(
                f"--token-counts {path}: these are the counts of the {len(verification)} samples that the result is "
                "verified on; count on other text"
            )
