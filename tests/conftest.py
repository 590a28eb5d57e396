"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

# A shell gives what it runs in the background no SIGINT. Tests send it to processes of their own, so they need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples in every run, however long one takes on a busy machine.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("QCOMPILER_DATA", ROOT.parent / "shared" / "data")).resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real models and labeled data; skip the test where there is none."""
    if not (SHARED_DATA / "models").is_dir():
        pytest.skip(f"no shared data in {SHARED_DATA}; set QCOMPILER_DATA")
    return SHARED_DATA
