"""Who places the nodes at -O2: the table, this machine's time, or the instructions of an emulated board."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest

from qcompiler.placement import dispatch as placing
from qcompiler.placement.instructions import InstructionMeter
from qcompiler.placement.latency import LatencyMeter
from qcompiler.recipe import Recipe
from qcompiler.records import PassReport
from qcompiler.registry import load_target
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.shared_plan import PlacedBy, placed_by, places_alike
from tests.compiling import planned, samples
from tests.models import conv_net

EMULATOR = Emulator(tree=Path("/t"), qemu=Path("/q"), libraries="", counter=Path("/c"), versions=())


@pytest.mark.parametrize(
    ("machine", "target", "recipe", "expected"),
    [
        ("x86_64", "x86", Recipe(effort=2), PlacedBy.LATENCY),
        ("x86_64", "x86", Recipe(effort=1), PlacedBy.TABLE),
        ("x86_64", "x86", Recipe(effort=2, replay="out"), PlacedBy.TABLE),
        ("x86_64", "openvino", Recipe(effort=2), PlacedBy.TABLE),
        ("x86_64", "arm", Recipe(effort=2), PlacedBy.TABLE),
        ("x86_64", "arm", Recipe(effort=2, verify="emulate"), PlacedBy.INSTRUCTIONS),
        ("x86_64", "arm:cortex-a53", Recipe(effort=2, verify="emulate"), PlacedBy.INSTRUCTIONS),
        ("x86_64", "arm", Recipe(effort=1, verify="emulate"), PlacedBy.TABLE),
        ("x86_64", "x86", Recipe(effort=2, verify="emulate"), PlacedBy.LATENCY),
        ("aarch64", "arm", Recipe(effort=2, verify="emulate"), PlacedBy.LATENCY),
    ],
)
def test_what_is_asked_and_what_is_here_decide(machine, target, recipe, expected, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert placed_by(load_target(target), recipe) is expected


@pytest.fixture
def meters(monkeypatch):
    """Give the meters that something was placed with."""
    found = []

    def place(state, context, data, lower, meter):
        found.append(meter)
        return state, PassReport(name=meter.name, changed=False)

    monkeypatch.setattr(placing, "place_by_measurement", place)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return found


def placed(target, **recipe):
    state, context = planned(conv_net(), target=target)
    context = dataclasses.replace(context, recipe=Recipe(**recipe))
    job = placing.Placing(context=context, samples=samples(state.model), lower=lambda s: s.model, emulator=EMULATOR)
    return placing.place_measured(state, (PassReport(name="before", changed=True),), job)[1]


def test_the_target_is_emulated_on_its_own_board(meters):
    reports = placed("arm:cortex-a72", effort=2, verify="emulate")
    (meter,) = meters
    assert isinstance(meter, InstructionMeter)
    assert (meter.board.name, meter.emulator) == ("cortex-a72", EMULATOR)
    assert [r.name for r in reports] == ["before", "counted-placement"]
    assert reports[-1].seconds > 0


def test_this_machine_is_timed(meters):
    placed("x86", effort=2)
    assert isinstance(meters[0], LatencyMeter)


def test_the_table_alone_reports_nothing(meters):
    assert [r.name for r in placed("arm", effort=2)] == ["before"]
    assert meters == []


@pytest.mark.parametrize(
    ("first", "second", "recipe", "alike"),
    [
        ("arm", "reference", Recipe(effort=2), True),
        ("arm", "reference", Recipe(effort=2, verify="emulate"), False),
        ("reference", "arm", Recipe(effort=2, verify="emulate"), False),
        ("arm", "arm:i8mm", Recipe(effort=2, verify="emulate"), False),
        ("arm", "reference", Recipe(effort=1, verify="emulate"), True),
        ("arm", "x86", Recipe(effort=2), False),
        ("arm", "x86", Recipe(effort=1), True),
    ],
)
def test_what_is_measured_on_a_device_is_like_nothing_else(first, second, recipe, alike, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    state, context = planned(conv_net(), target=first)
    context = dataclasses.replace(context, recipe=recipe)
    assert places_alike(state, context, load_target(second)) is alike
