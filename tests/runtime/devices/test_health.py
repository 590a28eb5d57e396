"""Signs of throttling, from what a machine told before and after."""

from dataclasses import replace

import pytest

from qcompiler.records import DeviceHealth
from qcompiler.runtime.devices.health import drift, throttling_signs

CALM = DeviceHealth(
    governors=("performance",),
    mhz=(1800.0, 600.0),
    allowed_mhz=(1800.0, 1800.0),
    hardware_mhz=(1800.0, 1800.0),
    celsius={"0 cpu": 50.0},
    throttled=3,
)


def test_a_machine_that_tells_nothing_shows_no_sign():
    assert throttling_signs(DeviceHealth(), DeviceHealth(), 0.0) == ()


def test_a_calm_machine_shows_no_sign():
    assert throttling_signs(CALM, replace(CALM, mhz=(600.0, 1800.0), celsius={"0 cpu": 58.0}), 0.04) == ()


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({"mhz": (1200.0, 600.0)}, "the clock fell from 1800 to 1200 MHz"),
        ({"allowed_mhz": (1000.0, 1000.0)}, "the system allows 1000 MHz of 1800"),
        ({"throttled": 5}, "the processor says that it was throttled 2 times"),
        ({"celsius": {"0 cpu": 61.0}}, "0 cpu is at 61 C, +11 since the start"),
        ({"celsius": {"1 gpu": 81.0}}, "1 gpu is at 81 C, +0 since the start"),
    ],
)
def test_signs(change, sign):
    assert throttling_signs(CALM, replace(CALM, **change), 0.0) == (sign,)


def test_drift_is_that_of_the_model_that_slows_down_most():
    blocks = [[[1.0, 1.0], [2.0, 2.0 + 0.1 * number]] for number in range(10)]
    found = drift(blocks)
    assert found == pytest.approx((2.0 + 0.1 * 8.5 / 2) / (2.0 + 0.1 * 0.5 / 2) - 1.0)
    assert throttling_signs(CALM, CALM, found) == (f"the last runs are {100 * found:.0f} % slower than the first",)


def test_one_block_does_not_drift():
    assert drift([[[1.0]]]) == 0.0
