"""One compilation below 8 bits: how it was asked for, what came of it on the scoring rows, and how it is kept.

A cell of the tables is a model and a setting, over some seeds. Every run is kept as a file of its own, so that a
long series goes on where it was stopped, and a report is made of all that is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.answers import Answers, Change
from benchmarks.models import CNN_MODELS, PUBLIC_MODELS, BenchmarkModel, all_of_resnet20
from benchmarks.stored import MULTIPLIED

DIGITS = PUBLIC_MODELS[0]
_NAMES = ("squeezenet1_1", "mobilenet_v1_025", "kws_dscnn", "ultraface")
MODELS = (DIGITS, all_of_resnet20(), *(m for m in CNN_MODELS if m.name in _NAMES))

MIXED, UNIFORM, PLAIN, RIVAL = "mixed", "uniform", "nearest", "onnxruntime"
SOLVERS = ("gptq", "descent")

PLAIN_PASSES = "widen-float16,fold-batch-norm,place,observe,scale-weights{rounding=nearest},calibrate"

TARGETS: dict[str, dict[int, float]] = {
    "cifar10_resnet20": {4: 0.5, 3: 1.5, 2: 6.0},
    "squeezenet1_1": {4: 1.0, 3: 4.0},
    "mobilenet_v1_025": {4: 3.0, 3: 8.0},
    "kws_dscnn": {4: 1.0, 3: 3.0},
}
"""Model -> width -> the most points of top-1 that may be lost, on the mean of the seeds."""
AGREEMENT_TARGETS = {"cifar10_resnet20": 0.95, "squeezenet1_1": 0.88}
"""Model -> the least share of the original's answers at 4 bits."""
LEVEL_TARGETS = {"ultraface": 38.0}
"""Model -> the least SQNR of every output in dB, at 4 bits."""
SIZE_TARGETS = {"ultraface": 320_000, "squeezenet1_1": 700_000}
"""Model -> the most bytes of the file at 4 bits."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """How a model is compiled.

    Attributes:
        width: bits of the weights; activations have 8.
        kind: MIXED (on average), UNIFORM (everywhere), PLAIN (nearest rounding, first and last layer in 8 bits),
            RIVAL, or the name of a solver that is left alone to choose codes.
        effort: of the command.
        minutes: of fine-tuning, 0 for none.
    """

    width: int
    kind: str = MIXED
    effort: int = 1
    minutes: float = 0.0

    @property
    def bits(self) -> str:
        """Return what ``--bits`` is given."""
        return f"W{self.width}A8{':uniform' if self.kind == UNIFORM and self.width < 8 else ''}"

    @property
    def label(self) -> str:
        """Return the name of the setting in a table, without its width."""
        if self.kind == RIVAL:
            return "onnxruntime.quantization"
        if self.kind == PLAIN:
            return "nearest, ends in 8 bits"
        tuned = f" --fine-tune {self.minutes:g}" if self.minutes else ""
        return f"{self.kind} -O{self.effort}{tuned}"

    @property
    def slug(self) -> str:
        """Return a name for files."""
        return f"w{self.width}-{self.kind}-o{self.effort}-t{self.minutes:g}"


@dataclass(frozen=True, slots=True)
class Run:
    """One compilation with one seed, scored.

    Attributes:
        model: name of the benchmark model.
        setting: how it was compiled.
        seed: of the command.
        command: words of the command line, without paths.
        wall_seconds, peak_bytes: of the command.
        notes: why it was refused or failed, or "".
        changes: by name ``lost``, ``gained``, ``agrees`` (0 or 1) and ``entropy_rise``; empty without labels.
        original_top1: of the float original, in percent; None without labels.
        levels_db: SQNR of every output; empty where nothing was written.
        file_bytes: of the model.
        stored: what the file stores by kind, from the report.
        mean_bits: stored bits a weight, read from the file; None for a rival.
        within: they keep to the width, but for whole bytes.
        wrong_sizes: packed weights of other than ceil(bits * weights / 8) bytes.
        packed: how many weights are packed.
        unpacking_each: bytes of unpacking a packed tensor.
        widths: planned width -> number of weights with it.
        load: ratios to the original: ``ms`` and ``peak_bytes``.
        stages: seconds by stage of the compilation.
        wins: solver -> layers it won.
        correlation: of predicted and measured loss, ranks.
        searches: what became of each search behind the first result.
        split: how many of the calibration rows the command calibrated, accepted and verified on.
        versions: packages.
    """

    model: str
    setting: Setting
    seed: int
    command: str
    wall_seconds: float
    peak_bytes: int
    notes: str = ""
    changes: dict[str, list[float]] = field(default_factory=dict)
    original_top1: float | None = None
    levels_db: dict[str, float] = field(default_factory=dict)
    file_bytes: int = 0
    stored: dict[str, int] = field(default_factory=dict)
    mean_bits: float | None = None
    within: bool = False
    wrong_sizes: tuple[str, ...] = ()
    packed: int = 0
    unpacking_each: float | None = None
    widths: dict[str, int] = field(default_factory=dict)
    load: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    wins: dict[str, int] = field(default_factory=dict)
    correlation: float | None = None
    searches: tuple[str, ...] = ()
    split: tuple[int, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Return whether a file was written and scored."""
        return bool(self.levels_db)

    @property
    def change(self) -> Change | None:
        """Return what became of every row, None where there are no labels."""
        if not self.changes:
            return None
        flags = {name: np.asarray(self.changes[name]) > 0 for name in ("lost", "gained", "agrees")}
        return Change(**flags, entropy_rise=np.asarray(self.changes["entropy_rise"]))


def with_answers(run: Run, original: Answers, found: Change) -> Run:
    """Return a run with what became of every row."""
    kept = {name: getattr(found, name).astype(float).tolist() for name in ("lost", "gained", "agrees", "entropy_rise")}
    return replace(run, changes=kept, original_top1=float(100 * original.right.mean()))


def budget_words(rows: int) -> list[str]:
    """Return the options that give the command all calibration rows: an eighth verifies, the rest calibrates."""
    verify = max(1, rows // 8)
    return ["--calibration-samples", str(rows - verify), "--verify-samples", str(verify)]


def words(setting: Setting, seed: int, rows: int, classes: bool = True) -> list[str]:
    """Return the options of the command: floors that stop nothing, so that no repair adds bits.

    Args:
        setting: what to compile.
        seed: of the command.
        rows: calibration samples that there are.
        classes: the model has class scores, whose agreement has a floor.
    """
    from qcompiler.passes import WITH_DATA

    found = ["--target", "x86", "--bits", setting.bits, f"-O{setting.effort}", "--seed", str(seed)]
    found += ["--min-agreement", "0"] if classes else []
    found += ["--min-sqnr=-1000", "--max-latency-ratio", "1000", *budget_words(rows)]
    if setting.minutes:
        found += ["--fine-tune", f"{setting.minutes:g}"]
    if setting.kind == PLAIN:
        found += ["--passes", PLAIN_PASSES]
    elif setting.kind not in (MIXED, UNIFORM):
        alone = f"solve-codes{{solvers={setting.kind}}}"
        found += ["--passes", ",".join(alone if name == "solve-codes" else name for name in WITH_DATA)]
    return found


def ends_in_eight_bits(model: Path) -> str:
    """Return a recipe that gives the first and the last layer with weights 8 bits; "" where these have no names."""
    nodes = [n for n in onnx.load(model, load_external_data=False).graph.node if n.op_type in MULTIPLIED]
    if not (nodes[0].name and nodes[-1].name):
        return ""
    tables = [f"[match.'^{re.escape(n.name)}$']\nbits = 8\n" for n in (nodes[0], nodes[-1])]
    return "\n".join(tables)


def report_facts(folder: Path) -> dict[str, Any]:
    """Return what the report and the plan beside a compiled file say, as fields of a ``Run``."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    loads = report["measured"].get("loads") or {}
    original, result = loads.get("original"), loads.get("result")
    ratios = {k: result[k] / original[k] for k in ("ms", "peak_bytes")} if original and result else {}
    if result:
        ratios["bytes"] = result["peak_bytes"]
    widths: dict[str, int] = {}
    for tensor in plan["tensors"]:
        if tensor["role"] == "weight" and tensor["spec"]:
            key = str(tensor["spec"]["num_bits"])
            widths[key] = widths.get(key, 0) + 1
    data = report["data"] or {}
    return {
        "stored": report["verdict"]["stored_bytes"],
        "widths": dict(sorted(widths.items())),
        "load": ratios,
        "stages": {s["name"]: s["seconds"] for s in report["measured"]["stages"]},
        "wins": _wins(report["passes"]),
        "correlation": (report.get("frontier") or {}).get("correlation"),
        "searches": _searches(report),
        "split": tuple(len(data.get(name, ())) for name in ("calibration", "acceptance", "verification")),
        "versions": report["versions"],
    }


def _searches(report: dict[str, Any]) -> tuple[str, ...]:
    """Return a line for each search that improved the first result, or failed to."""
    found = (report["measured"].get("search") or {}).get("stages", [])
    lines = []
    for stage in found[1:]:
        levels = [stage.get("before_db"), stage.get("after_db")]
        change = " -> ".join("-" if level is None else f"{level:.2f}" for level in levels)
        detail = f", {stage['detail']}" if stage.get("detail") else ""
        lines.append(f"{stage['name']} {stage['outcome']}, {change} dB in {stage['seconds']:.0f} s{detail}")
    return tuple(lines)


def _wins(passes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many layers each solver won, in the first contest."""
    contests = [p for p in passes if p["name"] == "solve-codes"]
    metrics = contests[0]["metrics"] if contests else []
    won = {m["name"]: m["value"] for m in metrics if m["name"].startswith("won by ")}
    return {name.removeprefix("won by "): int(value) for name, value in won.items()}


def kept_path(keep: Path, model: BenchmarkModel, setting: Setting, seed: int) -> Path:
    """Return where a run is kept."""
    return keep / f"{model.name}-{setting.slug}-s{seed}.json"


def save_run(run: Run, path: Path) -> None:
    """Write a run; a file that is there is whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run)), encoding="utf-8")
    partial.replace(path)


def load_run(path: Path) -> Run:
    """Read a run that was kept."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    kept["setting"] = Setting(**kept["setting"])
    return Run(
        **{
            **kept,
            "split": tuple(kept["split"]),
            "wrong_sizes": tuple(kept["wrong_sizes"]),
            "searches": tuple(kept.get("searches", ())),
        }
    )
