"""README.md is true: its commands run, its output is that of a real run, its tables are those of the code.

``QCOMPILER_UPDATE_DOCS=1 python -m pytest tests/docs/test_readme.py`` writes the tables and the output anew.
"""

import dataclasses
import inspect
import os
import platform
import re

import pytest

from qcompiler.errors import EXIT_CODES
from qcompiler.passes import PASSES
from qcompiler.registry import load_target, make_pass
from qcompiler.targets import TARGETS
from tests.docs.markdown import commands, fences, section, table, with_section

UPDATE = os.environ.get("QCOMPILER_UPDATE_DOCS") == "1"


@pytest.fixture
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def check_section(root, name, content):
    """Compare a section of README.md with what it should be, or write it."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    if UPDATE:
        path.write_text(with_section(text, name, content), encoding="utf-8")
    else:
        assert section(text, name) == content


def first_sentence(thing):
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].replace("``", "`").split())


def options(step):
    names = [field.name for field in dataclasses.fields(step)]
    return ", ".join(f"`{name}={str(getattr(step, name)).lower()}`" for name in names) or "-"


def test_every_pass_is_listed(root):
    rows = []
    for name in PASSES:
        step = make_pass(name)
        rows.append((f"`{name}`", str(step.kind), options(step), first_sentence(type(step))))
    check_section(root, "passes", table(("pass", "kind", "options", "what it does"), rows))


def test_every_target_is_listed(root):
    rows = []
    for name in TARGETS:
        target = load_target(name)
        profiles = ", ".join(f"`{profile}`" for profile in target.profiles) or "-"
        rows.append((f"`{name}`", f"`{target.full_name}`", profiles, target.summary))
    check_section(root, "targets", table(("target", "is", "profiles", "what it is"), rows))


def test_every_exit_code_is_listed(root):
    rows = [(str(code), meaning) for code, meaning in EXIT_CODES.items()]
    check_section(root, "exit-codes", table(("code", "meaning"), rows))


def test_the_folder_map_names_folders_that_exist(readme, root):
    named = re.findall(r"`([a-z_/]+/)`", section(readme, "folders"))
    assert len(named) > 8
    for name in named:
        assert (root / name).is_dir() or (root / "qcompiler" / name).is_dir(), name


def shape(output):
    """Return headings and first cells of a report: what stays the same when figures change."""
    body = output.split("\n\n", 1)[1]
    rows = {re.split(r"\s{2,}", line.strip())[0] for line in body.splitlines() if line.startswith("  ")}
    headings = [line for line in body.splitlines() if line and not line.startswith(" ")]
    mask = re.compile(r"[\d.,]+")
    return [mask.sub("#", line) for line in headings], {mask.sub("#", row) for row in rows}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the output shown is of an x86 machine")
def test_the_output_is_that_of_a_run(readme, root, folder, qcompile):
    command = commands(readme, "qcompile")[0]
    done = qcompile(f"{command} -o shown", cwd=folder)
    assert done.returncode == 0, done.stderr
    output = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines()) + "\n"
    assert output.startswith("OK ")
    if UPDATE:
        check_section(root, "demo", f"```text\n{output}```\n")
    else:
        (shown,) = fences(section(readme, "demo"), "text")
        assert shape(shown) == shape(output)


def test_the_commands_run(readme, folder, qcompile):
    found = commands(readme, "qcompile")
    assert len(found) > 5
    for command in found:
        done = qcompile(command, cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    for name in ("model.onnx", "report.html", "report.json", "plan.json", "plan.npz"):
        assert (folder / "digits_cnn.qcompile" / name).is_file()
    assert (folder / "compared" / "arm-cortex-a72" / "model.ort").is_file()


def test_the_python_code_runs(readme, folder, monkeypatch, capsys):
    (code,) = fences(readme, "python")
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    assert "from-python " in capsys.readouterr().out


def test_make_has_the_named_targets(readme, root):
    makefile = (root / "Makefile").read_text()
    for command in commands(readme, "make"):
        assert f"\n{command.split()[1]}:" in makefile
