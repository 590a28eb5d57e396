"""A folder with the model and the samples that the documentation's commands use, and a way to run them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_qcompile(command, *, cwd, paths=()):
    """Run one line of a console block as in a terminal of 80 columns without color."""
    program, *words = shlex.split(command, comments=True)
    assert program == "qcompile"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
        "TTY_COMPATIBLE": "1",
        "NO_COLOR": "1",
        "COLUMNS": "80",
        "TERM": "dumb",
    }
    return subprocess.run(
        [sys.executable, "-m", "qcompiler", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def qcompile():
    return run_qcompile


@pytest.fixture
def root():
    return ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder with ``digits_cnn.onnx``, ``digits.npz`` and ``labels.npy``."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "examples" / "digits_cnn.onnx", folder)
    script = str(ROOT / "examples" / "digits_data.py")
    subprocess.run([sys.executable, script, str(folder)], check=True, capture_output=True)
    return folder
