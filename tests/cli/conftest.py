"""Runs commands in this process, with the compiler replaced where a test is not about it."""

import sys
from types import SimpleNamespace

import pytest

from qcompiler.cli import main


@pytest.fixture
def run(capfd, tmp_path_factory, monkeypatch):
    """Give a function that runs the command line in an empty folder; it returns code, out and err."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))

    def run_command(*arguments):
        code = main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run_command


@pytest.fixture
def fake_compiler(monkeypatch):
    """Stand in for ``qcompiler.compiler``; gives the module, whose functions a test may replace.

    ``calls`` holds the keyword arguments of every compilation, the model under "model".
    """
    calls = []

    def compile_model(model, **arguments):
        calls.append({"model": model, **arguments})
        return ()

    module = SimpleNamespace(compile_model=compile_model, plan_only=lambda model, recipe: "planned\n", calls=calls)
    monkeypatch.setitem(sys.modules, "qcompiler.compiler", module)
    return module
