"""How a run may end without an answer, or with one that nobody can read."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from qcompiler.errors import LatencyUnavailable, ModelError, QCompileError, RuntimeUnavailable
from qcompiler.runtime.devices import Bundle, Outcome
from qcompiler.runtime.devices.answer import measure

BUNDLE = Bundle(models=(Path("m.onnx"),), labels=("m.onnx",), external={}, sample=Path("s.npz"), threads=1, seconds=1.0)
STARTED = 'Welcome!\nqcompile:{"started": true}\n'


@dataclass(frozen=True)
class Ended:
    """A device whose run has ended."""

    outcome: Outcome
    is_here: bool = False
    name: str = "there"

    def run(self, bundle):
        return self.outcome


def ended(output="", errors="", code=0, *, here=False):
    return Ended(Outcome(output=output, errors=errors, code=code), here)


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        (ended(STARTED, code=128 + 14), LatencyUnavailable, r"there did not finish within \d+ s"),
        (ended(STARTED, code=128 + 9), LatencyUnavailable, r"with signal 9; is its memory too small"),
        (ended(STARTED, "a\nb\n", code=128 + 11), LatencyUnavailable, r"with signal 11: b"),
        (ended(STARTED, "Traceback\nOSError: x", code=1), LatencyUnavailable, r"with exit code 1: OSError: x"),
        (ended(STARTED + 'qcompile:{"blocks": [[', code=0), LatencyUnavailable, r"with exit code 0"),
        (ended(code=-11, here=True), ModelError, r"crashed with signal 11"),
        (ended(errors="sh: python3: not found", code=127), RuntimeUnavailable, r"no such Python \(.*not found\)"),
        (ended(errors="What?", code=3), RuntimeUnavailable, r"did not start the runner \(exit code 3: What\?\)"),
        (ended(STARTED + 'qcompile:{"blocks": []}'), QCompileError, r"the answer of there cannot be read"),
    ],
)
def test_ends(device, error, message):
    with pytest.raises(QCompileError, match=message) as caught:
        measure(device, BUNDLE)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
