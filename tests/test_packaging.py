"""The wheel holds every module and data file and nothing else, and it works without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "qcompiler", "passes", "targets")
DATA_SUFFIXES = {".j2", ".css", ".js", ".LICENSE", ".json", ".c"}


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Give a wheel built from a copy of the sources; what is installed builds it, so no network is needed."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip(f"setuptools {version('setuptools')} is too old to build; install the dev extra")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def members(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_module(members):
    expected = {
        f"{prefix}{path.relative_to(folder).as_posix()}"
        for folder, prefix in (
            (ROOT / "qcompiler", "qcompiler/"),
            (ROOT / "passes", "qcompiler/passes/"),
            (ROOT / "targets", "qcompiler/targets/"),
        )
        for path in folder.rglob("*.py")
    }
    assert {name for name in members if name.endswith(".py")} == expected


def test_the_wheel_holds_the_data_files(members):
    expected = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "qcompiler").rglob("*") if path.suffix in DATA_SUFFIXES
    }
    assert len(expected) > 8
    assert expected <= members
    assert "qcompiler/py.typed" in members


def test_the_wheel_holds_nothing_else(members):
    assert {name.split("/")[0] for name in members} == {"qcompiler"}


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    code = "import qcompiler.cli, sys; print(qcompiler.__file__); sys.exit(qcompiler.cli.main(['targets']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert Path(first).is_relative_to(tmp_path)
    assert any(line.startswith("arm") for line in rest)
