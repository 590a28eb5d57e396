"""inspect and diff on folders of results."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler.errors import FloorMissed
from qcompiler.report.document import write_report

BUILDER = Path(__file__).resolve().parents[1] / "report" / "builder.py"


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("report_builder", BUILDER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def result(builder, tmp_path):
    """A folder with one report."""
    folder = tmp_path / "m.qcompile"
    folder.mkdir()
    write_report(builder.make_report(), folder)
    (folder / "report.html").write_text("<html></html>")
    return folder


def test_inspect(run, result):
    shown = run("inspect", result)
    assert (shown.code, shown.err) == (0, "")
    assert "OK" in shown.out
    assert len(run("inspect", result, "-v").out) > len(shown.out)


def test_inspect_one_layer_or_pass(run, result, builder):
    report = builder.make_report()
    layer, step = report.layers[2].name, report.passes[0].name
    assert layer in run("inspect", result, "--layer", layer).out
    assert step in run("inspect", result, "--pass", step).out
    missing = run("inspect", result, "--layer", layer + "x")
    assert missing.code == 2
    assert layer in missing.err


def test_inspect_a_layer_says_how_its_weights_are_stored(run, builder, tmp_path):
    report = builder.make_report()
    first, second = report.layers[:2]
    packed = replace(first, weight_bits=4, weight_reason="descent on even levels")
    write_report(replace(report, layers=(packed, second)), tmp_path)
    assert "4 bits: descent on even levels" in run("inspect", tmp_path, "--layer", first.name).out
    assert "bits:" not in run("inspect", tmp_path, "--layer", second.name).out


def test_inspect_json_is_the_report(run, result):
    assert json.loads(run("inspect", result, "--json").out) == json.loads((result / "report.json").read_text())


def test_inspect_html_prints_a_path(run, result):
    assert run("inspect", result, "--html").out == f"{result / 'report.html'}\n"
    (result / "report.html").unlink()
    assert run("inspect", result, "--html").code == 3


def test_inspect_several_targets(run, builder, tmp_path):
    for target in ("arm", "x86"):
        (tmp_path / target).mkdir()
        write_report(builder.make_report(target=target), tmp_path / target)
    documents = json.loads(run("inspect", tmp_path, "--json").out)
    assert [document["target"] for document in documents] == ["arm", "x86"]
    shown = run("inspect", tmp_path)
    assert shown.code == 0
    assert "x86" in shown.out


def test_inspect_what_is_no_result(run, tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        shown = run("inspect", path)
        assert (shown.code, shown.out) == (3, "")
        assert "no report" in shown.err


def test_diff(run, result, builder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_report(builder.missed_report(), other)
    shown = run("diff", result, other)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.strip()
    found = json.loads(run("diff", result, other, "--json").out)
    assert found["differences"]
    assert json.loads(run("diff", result, result, "--json").out) == {"differences": [], "measured": []}


@pytest.fixture
def compiled(builder, fake_compiler, tmp_path):
    """The fake compiler gives one result that holds its floors."""
    from types import SimpleNamespace

    results = (SimpleNamespace(target="arm", folder=tmp_path / "out", report=builder.make_report()),)
    fake_compiler.compile_model = lambda model, **arguments: results
    return results


def test_compile_shows_the_report(run, compiled):
    shown = run("m.onnx")
    assert shown.code == 0
    assert "OK" in shown.out
    assert "out" in shown.err


def test_compile_json_alone_on_stdout(run, compiled):
    document = json.loads(run("m.onnx", "--json").out)
    (entry,) = document["results"]
    assert entry["target"] == "arm"
    assert entry["report"]["schema"].startswith("qcompile.report/")


def test_compile_summary(run, compiled, tmp_path):
    assert run("m.onnx", "--summary", tmp_path / "s.md").code == 0
    assert "arm" in (tmp_path / "s.md").read_text()


def test_missed_floor_shows_the_report_and_exits_4(run, compiled, fake_compiler):
    def miss(model, **arguments):
        raise FloorMissed("min_sqnr: 12 dB, at least 15", compiled)

    fake_compiler.compile_model = miss
    shown = run("m.onnx", "--json")
    assert shown.code == 4
    assert shown.err == "error: min_sqnr: 12 dB, at least 15\n"
    assert len(json.loads(shown.out)["results"]) == 1
