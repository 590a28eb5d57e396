"""What a compilation decided, from its own report: bits, attention that was found, and what training did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown_table


@dataclass(frozen=True, slots=True)
class Decisions:
    """Of one compilation.

    Attributes:
        metrics: pass -> name of a metric -> its value.
        sublayers: rows of the table of bits by kind of sublayer, as the report has them; none where no bits were
            chosen.
    """

    metrics: Mapping[str, Mapping[str, float]]
    sublayers: Sequence[Mapping[str, Any]]

    def metric(self, name: str, digits: int = 2) -> str:
        """Return a metric as text, of whichever pass has it; a dash where none has."""
        found = next((values[name] for values in self.metrics.values() if name in values), None)
        return "-" if found is None else f"{found:.{digits}f}"


def decisions_of(result: Path) -> Decisions:
    """Read the report of a result folder, or of one that was refused."""
    folders = (result, result.with_name(f"{result.name}.failed"))
    path = next((folder / "report.json" for folder in folders if (folder / "report.json").is_file()), None)
    passes = json.loads(path.read_text(encoding="utf-8"))["passes"] if path is not None else []
    metrics = {entry["name"]: {m["name"]: m["value"] for m in entry["metrics"]} for entry in passes}
    tables = [table for entry in passes for table in entry["tables"] if table["title"] == "bits by sublayer"]
    return Decisions(metrics, tables[0]["rows"] if tables else [])


def decision_section(found: Sequence[tuple[str, Decisions]]) -> str:
    """Return the table of what was decided, a row a contender."""
    header = ("contender", "mean bits of layers", "mean bits of the table", "attention found", "distance from float")
    rows = [
        (
            name,
            own.metric("mean width"),
            own.metric("mean bits of table"),
            f"{own.metric('attention matched', 0)} of {own.metric('attention', 0)}",
            f"{own.metric('distance on acceptance samples before', 4)} to "
            f"{own.metric('distance on acceptance samples after', 4)}",
        )
        for name, own in found
    ]
    parts = ["## Decisions\n", markdown_table(header, rows)]
    named = next(((name, own) for name, own in found if own.sublayers), None)
    if named is not None:
        columns = ("weights", "chosen bits", "predicted loss", "alone at 4 bits", "at 3", "at 2", "at 1")
        lines = [
            (row["name"], f"{values[0] / 1e6:.2f} M", f"{values[2]:.2f}", *(f"{v:.4f}" for v in values[3:]))
            for row in named[1].sublayers
            for values in [row["values"]]
        ]
        parts += [f"Losses that were predicted for {named[0]}, in nats a token:\n"]
        parts += [markdown_table(("sublayer", *columns), lines)]
    return "\n".join(parts)
