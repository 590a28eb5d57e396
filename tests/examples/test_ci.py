"""The job and the script for pipelines."""

import importlib.util
import shlex

import pytest

from qcompiler.cli.commands import qcompile
from qcompiler.recipe import Floors


@pytest.fixture
def check_model(examples):
    spec = importlib.util.spec_from_file_location("check_model", examples / "ci" / "check_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(examples, digits, tmp_path):
    return (
        examples / "digits_cnn.onnx",
        digits / "digits.npz",
        digits / "labels.npy",
        tmp_path / "summary.md",
    )


def test_the_script_holds_the_floors(check_model, arguments, tmp_path):
    assert check_model.check(*arguments) == 0
    assert arguments[-1].read_text().startswith("# qcompile: every floor held")
    assert (tmp_path / "compiled" / "x86" / "model.onnx").is_file()


def test_the_script_fails_below_a_floor(check_model, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_model, "FLOORS", Floors(max_latency_ratio=0.001))
    assert check_model.check(*arguments) == 4
    assert "latency" in capsys.readouterr().err
    assert "2 of 2 targets rejected" in arguments[-1].read_text()
    assert not (tmp_path / "compiled" / "x86").exists()


def test_the_script_fails_without_a_model(check_model, arguments, tmp_path, capsys):
    assert check_model.check(tmp_path / "none.onnx", *arguments[1:]) == 3
    assert "not compiled" in capsys.readouterr().err
    assert not arguments[-1].exists()


def test_the_job_uses_options_that_exist(examples):
    text = (examples / "ci" / "compile-model.yml").read_text()
    command = text[text.index("qcompile model.onnx") :].split("#")[0]
    words = shlex.split(command)[1:]
    parsed = qcompile.commands["compile"].make_context("qcompile", words).params
    assert parsed["targets"] == ("arm", "x86")
    assert parsed["require_data"]
    assert parsed["max_drop"] == pytest.approx(0.5)
