"""``-O2 --verify emulate`` for real: the example's network placed by the instructions of emulated boards."""

from __future__ import annotations

import pytest

from qcompiler.compiler import compile_model
from qcompiler.recipe import Recipe
from tests.emulators import emulator_or_skip

pytestmark = pytest.mark.slow
REPEATS_TO = 5000
"""Instructions by which two counts of one model differ at most."""


@pytest.fixture(scope="module")
def results(examples, digits, tmp_path_factory):
    """Give effort -> what came out for the Cortex-A76: everything in integers at 1, placed by instructions at 2."""
    emulator_or_skip()
    folder, found, data = tmp_path_factory.mktemp("placed"), {}, str(digits / "digits.npz")
    for effort in (1, 2):
        recipe = Recipe(targets=("arm:cortex-a76",), data=data, effort=effort, verify="emulate")
        (found[effort],) = compile_model(examples / "digits_cnn.onnx", recipe=recipe, out=folder / str(effort))
    return found


def test_the_result_is_below_both_extremes(results):
    integer, placed = (results[effort].report.verdict.emulated[0] for effort in (1, 2))
    assert placed.result.total <= REPEATS_TO + min(integer.result.total, placed.original.total)
    # The first convolution has one input channel, which integer kernels are bad at.
    assert placed.result.total < 0.97 * integer.result.total


def test_the_report_says_what_was_counted(results):
    report = results[2].report
    (entry,) = (p for p in report.passes if p.name == "counted-placement")
    values = {m.name: m.value for m in entry.metrics}
    counted = report.verdict.emulated[0]
    assert values["counted instructions (emulated) in float"] == pytest.approx(counted.original.total, rel=0.01)
    reached = [value for name, value in values.items() if name.startswith("measured instructions (emulated) of split")]
    assert min(reached) == pytest.approx(counted.result.total, abs=REPEATS_TO)
    assert any("fewer instructions there" in layer.reason for layer in report.layers)
    assert not any("latency" in m.name for m in entry.metrics)
