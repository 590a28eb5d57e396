"""``report.json``: a ``CompileReport`` as a JSON document and back, checked against the shipped schema.

The document mirrors the records, with one difference: whatever differs between two runs of the same inputs,
seed and versions lies under ``measured``, so that everything else can be compared byte for byte. A floor or a
pass metric whose value is a time or a memory size keeps its place, marked ``"measured": true``, and its value
lies in ``measured``. Described in ``docs/report-schema.md``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from qcompiler.errors import InputError, OutputError, QCompileError
from qcompiler.records import CompileReport

_Json = Any
"""A JSON value, or a type annotation; both are only known at run time."""

SCHEMA = "qcompile.report/1"
FILE_NAME = "report.json"

_TIME_UNITS = frozenset({"s", "ms", "us", "ns", "seconds", "x latency"})
_MEASURED_WORDS = ("instructions", "latency", "memory", "seconds", "wall time")
_OUTCOME = ("reached", "held", "detail")
_VALUE_KEYS = ("name", "dtype", "shape")


def to_document(report: CompileReport) -> dict[str, Any]:
    """Return a report as plain JSON values, with what differs between runs under ``measured``.

    Raises:
        QCompileError: the report holds a value that JSON has no form for.
    """
    document: dict[str, Any] = {"schema": SCHEMA, **_plain(report, "report")}
    verdict, model = document["verdict"], document["model"]
    document["card"] = [{"field": k, "answer": v} for k, v in document["card"].items()]
    for side in ("inputs", "outputs"):
        model[side] = [dict(zip(_VALUE_KEYS, value, strict=True)) for value in model[side]]
    document["measured"] = {
        "held": report.verdict.held,
        "command": document.pop("command"),
        "machine": document.pop("machine"),
        "latency": verdict.pop("latency"),
        "latency_unavailable": verdict.pop("latency_unavailable"),
        "memory_bytes": verdict.pop("memory_bytes"),
        "layer_times": document.pop("layer_times"),
        "stages": [{"name": k, "seconds": v} for k, v in document.pop("stage_seconds").items()],
        "passes": [_split_pass(entry) for entry in document["passes"]],
        "floors": [found for entry in verdict["floors"] if (found := _split_floor(entry))],
    }
    for key in ("frontier", "damages"):  # reports of whole widths are as they were
        if not document[key]:
            del document[key]
    loads = verdict.pop("loads")
    if loads:
        document["measured"]["loads"] = loads
    emulated = verdict.pop("emulated")
    if emulated:  # a key of its own, for who asked: reports without it are as they were
        document["measured"]["emulated"] = emulated
    search = document.pop("search")
    if search is not None:  # likewise; how far a search came is a matter of time
        document["measured"]["search"] = search
    verdict["accuracy_verified"] = report.verdict.accuracy_verified
    return document


def from_document(document: Mapping[str, Any]) -> CompileReport:
    """Return the report that ``to_document`` wrote.

    Values of options and of the recipe come back as JSON values: a tuple comes back as a list.

    Raises:
        InputError: the document has another schema or another shape.
    """
    found = document.get("schema")
    if found != SCHEMA:
        raise InputError(f"report schema is {found!r}, expected {SCHEMA!r}; read it with the version that wrote it")
    try:
        report: CompileReport = _restore(CompileReport, _join(document))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not a {SCHEMA} document ({type(error).__name__}: {error})") from error
    return report


def write_report(report: CompileReport, folder: Path) -> Path:
    """Write ``report.json`` into a folder, after checking it against the schema, and return its path.

    Raises:
        QCompileError: the report does not fit its own schema.
        OutputError: the file cannot be written.
    """
    document = to_document(report)
    problem = _first_problem(document)
    if problem:
        raise QCompileError(f"{FILE_NAME} would break its own schema: {problem}")
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    return write_text(folder / FILE_NAME, text + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8 with LF line ends and return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def load_report(folder: Path) -> CompileReport:
    """Return the report of a compiled model, given its folder or its ``report.json``.

    Raises:
        InputError: there is no report, or it does not follow the schema.
    """
    path = folder / FILE_NAME if folder.is_dir() else folder
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        validate(document)
        return from_document(document)
    except OSError as error:
        raise InputError(f"{path}: no report ({error.strerror}); give a folder that qcompile wrote") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a report ({error}); give a folder that qcompile wrote") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def validate(document: object) -> None:
    """Check a document against the JSON Schema of this version.

    Raises:
        InputError: the document does not follow the schema; names the first place that does not.
    """
    problem = _first_problem(document)
    if problem:
        raise InputError(f"does not follow {SCHEMA}: {problem}")


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of ``report.json``."""
    text = resources.files("qcompiler.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def is_measured(name: str, unit: str) -> bool:
    """Return True if a figure of this name and unit is a time, a memory size or a count: it differs between runs."""
    what = name.split("'", 1)[0].lower()  # "SQNR of 'memory'" is named after an output
    return unit in _TIME_UNITS or any(word in what for word in _MEASURED_WORDS)


def _first_problem(document: object) -> str:
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if error is None:
        return ""
    message = error.message if len(error.message) <= 200 else error.message[:200] + "..."
    return f"at {error.json_path}: {message}"


def _plain(value: object, where: str) -> _Json:
    """Return a value as JSON values; a float that JSON lacks is spelled out, such as ``"NaN"``."""
    if value is None or isinstance(value, bool | str):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _number(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name), f"{where}.{name}") for name in names}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    raise QCompileError(f"{where} is a {type(value).__name__}, which a report cannot hold; use plain values")


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _split_pass(entry: dict[str, Any]) -> dict[str, Any]:
    """Take what differs between runs out of a pass entry and return it."""
    values = []
    for metric in entry["metrics"]:
        metric["measured"] = is_measured(metric["name"], metric["unit"])
        if metric["measured"]:
            values.append(metric.pop("value"))
    return {"name": entry["name"], "seconds": entry.pop("seconds"), "values": values}


def _split_floor(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Take the outcome out of a floor entry whose value is a time or memory, and return it."""
    entry["measured"] = is_measured(entry["name"], entry["unit"])
    if not entry["measured"]:
        return None
    return {"name": entry["name"], **{key: entry.pop(key) for key in _OUTCOME}}


def _join(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document in the shape of the records: the inverse of the splitting in ``to_document``."""
    flat = {k: v for k, v in document.items() if k not in ("schema", "measured")}
    measured = document["measured"]
    for key in ("command", "machine", "layer_times"):
        flat[key] = measured[key]
    flat["search"] = measured.get("search")
    flat["stage_seconds"] = {stage["name"]: stage["seconds"] for stage in measured["stages"]}
    flat["card"] = {entry["field"]: entry["answer"] for entry in flat["card"]}
    flat["model"] = dict(flat["model"])
    for side in ("inputs", "outputs"):
        flat["model"][side] = [[value[key] for key in _VALUE_KEYS] for value in flat["model"][side]]
    flat["passes"] = [_join_pass(p, m) for p, m in zip(flat["passes"], measured["passes"], strict=True)]
    flat["verdict"] = _join_verdict(flat["verdict"], measured)
    return flat


def _join_pass(entry: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    values = iter(measured["values"])
    metrics = []
    for metric in entry["metrics"]:
        value = next(values) if metric["measured"] else metric["value"]
        metrics.append({"name": metric["name"], "unit": metric["unit"], "value": value})
    return {**entry, "metrics": metrics, "seconds": measured["seconds"]}


def _join_verdict(verdict: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    outcomes = iter(measured["floors"])
    floors = []
    for floor in verdict["floors"]:
        merged = {**floor, **(next(outcomes) if floor["measured"] else {})}
        floors.append({k: v for k, v in merged.items() if k != "measured"})
    joined = {k: v for k, v in verdict.items() if k != "accuracy_verified"}
    joined["floors"] = floors
    for key in ("latency", "latency_unavailable", "memory_bytes"):
        joined[key] = measured[key]
    joined["loads"] = measured.get("loads", {})
    joined["emulated"] = measured.get("emulated", [])
    return joined


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _restore(hint: _Json, value: _Json) -> _Json:
    """Return a JSON value as the type that a record's annotation names."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        return hint(**{name: _restore(hints[name], v) for name, v in value.items()})
    origin: object = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _restore(arguments[0], value)
    if origin is tuple:
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_restore(h, v) for h, v in zip(inner, value, strict=True))
    if origin is Mapping:
        return {key: _restore(arguments[1], v) for key, v in value.items()}
    return float(value) if hint is float else value
