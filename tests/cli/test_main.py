"""The grammar of the command line, every way a command can end, and what it costs to ask for help."""

import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.cli.reference import cli_reference
from qcompiler.errors import (
    EXIT_CODES,
    DataError,
    FloorMissed,
    LatencyUnavailable,
    ModelError,
    NothingToCompress,
    OutputError,
    QCompileError,
    RuntimeUnavailable,
    UsageError,
)

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_command_option_and_exit_code(run):
    result = run("--help")
    assert result.code == 0
    assert result.err == ""
    for word in ("inspect", "profile", "diff", "targets", "passes", "--target", "--version", "Examples"):
        assert word in result.out
    for code, meaning in EXIT_CODES.items():
        assert f"{code} " in result.out
        assert meaning.split(":")[0] in result.out


def test_no_words_give_the_help(run):
    assert run().out == run("-h").out


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from qcompiler.cli import main; main(['--help']); "
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich', 'scipy', 'networkx'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_version(run):
    assert run("--version").out.startswith("qcompile ")


def test_first_word_that_is_no_command_is_the_model(run, fake_compiler):
    assert run("model.onnx", "--target", "x86").code == 0
    assert run("--target", "x86", "model.onnx").code == 0
    assert run("./inspect").code == 0
    assert [str(call["model"]) for call in fake_compiler.calls] == ["model.onnx", "model.onnx", "inspect"]
    assert fake_compiler.calls[0]["recipe"].targets == ("x86",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspekt", "d"], "did you mean 'inspect'"),
        (["m.onnx", "--treads", "2"], "--threads"),
        (["m.onnx", "-O9"], "there is no -O9"),
        (["m.onnx", "--max-size", "huge"], "'huge' is not a size"),
        (["m.onnx", "--threads", "two"], "'two' is not a valid integer"),
        (["m.onnx", "--passes", "a{"], "cannot read the pass list"),
        (["m.onnx", "--config", "none.toml"], "cannot read none.toml"),
        (["--target", "arm"], "Missing argument"),
        (["a.onnx", "b.onnx"], "unexpected extra argument"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(run, arguments, message):
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (ModelError, 3),
        (DataError, 3),
        (FloorMissed, 4),
        (NothingToCompress, 5),
        (RuntimeUnavailable, 6),
        (LatencyUnavailable, 6),
        (OutputError, 7),
    ],
)
def test_every_error_ends_in_its_line_and_code(run, fake_compiler, error, code):
    def fail(model, **arguments):
        raise error("found this\nin that place \x1b[31m; do so")

    fake_compiler.compile_model = fail
    result = run("m.onnx")
    assert result.code == code
    assert result.out == ""
    assert result.err == "error: found this in that place \\x1b[31m; do so\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), QCompileError("a broken contract")])
def test_a_bug_leaves_its_traceback_in_a_file(run, fake_compiler, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fail(model, **arguments):
        raise error

    fake_compiler.compile_model = fail
    result = run("m.onnx")
    assert result.code == 1
    assert result.err.count("\n") == 1
    (file,) = tmp_path.glob("qcompile-error-*.txt")
    assert str(file) in result.err
    assert "Traceback" in file.read_text()


def test_interrupt(run, fake_compiler):
    def interrupt(model, **arguments):
        raise KeyboardInterrupt

    fake_compiler.compile_model = interrupt
    result = run("m.onnx")
    assert result.code == 130
    assert result.err == "error: interrupted\n"


def test_output_that_nobody_reads_is_no_bug():
    """A reader such as ``head`` may close the pipe early."""
    command = f"{sys.executable} -m qcompiler --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in (0, 7)
    assert done.stderr == ""


def test_reference_page_is_the_help():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == cli_reference(), "run: python -m qcompiler.cli.reference > docs/cli.md"
