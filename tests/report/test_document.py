"""report.json: exact round trip, one place for what differs between runs, a schema that bites."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import typing
from pathlib import Path

import jsonschema
import pytest

from qcompiler.errors import InputError, OutputError, QCompileError
from qcompiler.records import CompileReport
from qcompiler.report import document
from tests.report.builder import (
    emulated_report,
    failed_report,
    make_report,
    missed_report,
    placed_report,
    searched_report,
    unverified_report,
)

REPORTS = {
    "verified": make_report(),
    "hostile": make_report(40, hostile=True),
    "failed": failed_report(),
    "emulated": emulated_report(),
    "emulated, hostile": emulated_report(40, hostile=True),
    "placed": placed_report(),
    "placed, hostile": placed_report(40, hostile=True),
    "searched": searched_report(),
    "searched, hostile": searched_report("interrupted", hostile=True),
    "missed": missed_report(),
    "unverified": unverified_report(),
    "one layer": make_report(1),
    "no layer": make_report(0),
}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "report-schema.md"


@pytest.fixture(params=REPORTS.values(), ids=REPORTS.keys())
def report(request) -> CompileReport:
    return request.param


def test_round_trip_is_exact(report, tmp_path):
    made = document.to_document(report)
    assert document.from_document(made) == report
    document.write_report(report, tmp_path)
    loaded = document.load_report(tmp_path)
    assert loaded == report
    assert list(loaded.card) == list(report.card)
    assert list(loaded.stage_seconds) == list(report.stage_seconds)


def test_written_file_is_sorted_strict_json(report, tmp_path):
    text = document.write_report(report, tmp_path).read_text()
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert text == json.dumps(parsed, indent=1, sort_keys=True) + "\n"


def test_only_measured_differs_between_runs():
    first = make_report()
    verdict = first.verdict
    slower = dataclasses.replace(verdict.latency, ratio_min=0.51)
    floors = (
        *verdict.floors[:-1],
        dataclasses.replace(verdict.floors[-1], reached=1.3, held=False, detail="x"),
    )
    calibrate = first.passes[3]
    timed = dataclasses.replace(calibrate.metrics[1], value=1.0)
    passes = [dataclasses.replace(p, seconds=p.seconds + 1) for p in first.passes]
    passes[3] = dataclasses.replace(passes[3], metrics=(calibrate.metrics[0], timed))
    second = dataclasses.replace(
        first,
        command=("qcompile", "elsewhere"),
        machine="another",
        layer_times=(),
        stage_seconds={"load": 9.0},
        passes=tuple(passes),
        verdict=dataclasses.replace(
            verdict, latency=slower, floors=floors, memory_bytes={}, latency_unavailable="too busy"
        ),
    )
    left, right = document.to_document(first), document.to_document(second)
    assert left.pop("measured") != right.pop("measured")
    assert left == right
    assert document.from_document(document.to_document(second)) == second


def test_other_differences_are_outside_measured():
    first = make_report()
    changed = dataclasses.replace(first.passes[0], notes=("other",))
    second = dataclasses.replace(first, passes=(changed, *first.passes[1:]))
    left, right = document.to_document(first), document.to_document(second)
    assert left["measured"] == right["measured"]
    assert left != right


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("latency ratio", "x", True),
        ("peak memory", "bytes", True),
        ("capture", "ms", True),
        ("wall", "s", True),
        ("file size", "bytes", False),
        ("agreement", "%", False),
        ("SQNR of 'memory_out'", "dB", False),
        ("agreement of 'latency'", "share", False),
    ],
)
def test_what_counts_as_measured(name, unit, expected):
    assert document.is_measured(name, unit) is expected


def test_numbers_that_json_lacks_survive(tmp_path):
    report = make_report()
    broken = dataclasses.replace(report.verdict.outputs[0], sqnr_db=-math.inf, cosine=math.nan, max_abs=math.inf)
    verdict = dataclasses.replace(report.verdict, outputs=(broken,))
    document.write_report(dataclasses.replace(report, verdict=verdict), tmp_path)
    found = document.load_report(tmp_path).verdict.outputs[0]
    assert found.sqnr_db == -math.inf
    assert math.isnan(found.cosine)
    assert found.max_abs == math.inf


def test_a_value_without_json_form_is_our_bug():
    report = dataclasses.replace(make_report(), recipe={"seed": object()})
    with pytest.raises(QCompileError, match=r"report\.recipe\.seed is a object") as caught:
        document.to_document(report)
    assert caught.value.exit_code == 1


def test_writing_checks_the_schema(tmp_path):
    with pytest.raises(QCompileError, match="card") as caught:
        document.write_report(dataclasses.replace(make_report(), card={"Weight bits": ""}), tmp_path)
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        document.write_report(make_report(1), tmp_path / "absent")


def _drop_target(made):
    del made["target"]


def _add_key(made):
    made["verdict"]["extra"] = 1


def _wrong_type(made):
    made["layers"][0]["bytes_before"] = "12"


def _value_twice(made):
    made["verdict"]["floors"][-1]["reached"] = 0.4


def _value_missing(made):
    del made["verdict"]["floors"][0]["reached"]


def _other_direction(made):
    made["verdict"]["floors"][0]["direction"] = "below"


def _empty_answer(made):
    made["card"][3]["answer"] = ""


def _short_card(made):
    made["card"].pop()


BREAKS = (
    _drop_target,
    _add_key,
    _wrong_type,
    _value_twice,
    _value_missing,
    _other_direction,
    _empty_answer,
    _short_card,
)


@pytest.mark.parametrize("break_it", BREAKS)
def test_the_schema_refuses(break_it):
    made = document.to_document(make_report())
    document.validate(made)
    broken = copy.deepcopy(made)
    break_it(broken)
    with pytest.raises(InputError, match=re.escape("does not follow qcompile.report/1: at $")):
        document.validate(broken)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"schema": "qcompile.report/2"}', "\x00", "[" * 100_000])
def test_loading_something_else_is_an_input_error(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=r"report\.json"):
        document.load_report(tmp_path)


def test_loading_from_nowhere_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="give a folder that qcompile wrote"):
        document.load_report(tmp_path / "absent")


def test_another_schema_version_is_named():
    with pytest.raises(InputError, match=re.escape("'qcompile.report/9', expected 'qcompile.report/1'")):
        document.from_document({"schema": "qcompile.report/9"})


def test_a_document_of_another_shape_is_an_input_error():
    made = document.to_document(make_report(1))
    made["measured"]["passes"].pop()
    with pytest.raises(InputError, match=r"not a qcompile\.report/1 document"):
        document.from_document(made)


def test_schema_is_valid_and_closed():
    schema = document.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    open_objects = [
        path
        for path, node in _objects(schema)
        if "properties" in node and node.get("additionalProperties") is not False
    ]
    conditions = [f"$.$defs.{name}.{branch}" for name in ("Floor", "Metric") for branch in ("if", "then")]
    assert sorted(open_objects) == sorted(conditions)


def test_schema_covers_every_field_of_the_records():
    names = _property_names(document.schema())
    renamed = {"stage_seconds": "stages"}
    found = records_in(CompileReport)
    assert len(found) > 20
    for record in found:
        for field in dataclasses.fields(record):
            assert renamed.get(field.name, field.name) in names, f"{record.__name__}.{field.name}"


def records_in(hint: typing.Any) -> set[type]:
    """Return every record that a value of a type may hold, its own type included."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return {hint}.union(*map(records_in, typing.get_type_hints(hint).values()))
    return set().union(*map(records_in, typing.get_args(hint)))


def test_docs_describe_every_key():
    text = DOCS.read_text()
    missing = sorted(name for name in _property_names(document.schema()) if f"`{name}`" not in text)
    assert missing == []


def _objects(node: typing.Any, path: str = "$"):
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _objects(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _objects(value, f"{path}[{i}]")


def _property_names(schema: dict) -> set[str]:
    return {
        name
        for _, node in _objects(schema)
        for name in (node["properties"] if isinstance(node.get("properties"), dict) else ())
    }


def test_a_search_differs_between_runs_and_is_absent_without_one():
    found = document.to_document(searched_report())
    assert [stage["name"] for stage in found["measured"]["search"]["stages"]][:2] == ["first result", "clip-search"]
    assert "search" not in found
    assert "search" not in document.to_document(make_report())["measured"]
