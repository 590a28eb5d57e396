"""Samples of the demo, and programs run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run_python(*arguments, cwd, paths=()):
    """Run a Python program in a folder, the checkout importable, and return the finished process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def examples():
    return EXAMPLES


@pytest.fixture(scope="session")
def python():
    return run_python


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Give the folder with ``digits.npz`` and ``labels.npy``."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    done = run_python(EXAMPLES / "digits_data.py", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder
