"""The real ARM emulator for slow tests, or a reason to skip them."""

from __future__ import annotations

import pytest

from qcompiler.errors import RuntimeUnavailable
from qcompiler.runtime.emulation.build import Emulator, prepare_emulator

NOT_HERE = ("is made for Debian", "apt-get failed", "pip failed", "cannot be fetched", "cannot be started")
"""What an emulator that cannot be had says; that it does not work is another thing, and fails."""


def emulator_or_skip() -> Emulator:
    """Return the emulator, built first where it is not in the cache; skip where it cannot be had."""
    try:
        return prepare_emulator()
    except RuntimeUnavailable as error:
        if any(words in str(error) for words in NOT_HERE):
            pytest.skip(f"no ARM emulation here: {error}")
        raise
