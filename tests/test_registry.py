"""Names to passes and targets, the built-in ones and those of third parties."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from qcompiler import registry
from qcompiler.errors import UsageError
from qcompiler.passes import PASSES
from qcompiler.passes.calibrate import Calibrate
from qcompiler.recipe import PassRequest
from qcompiler.registry import load_pass, load_target, make_pass, pass_names, target_names
from qcompiler.targets import TARGETS
from qcompiler.targets.arm import Arm


@dataclass(frozen=True)
class Extra:
    """A third party's pass."""

    strength: float
    count: int = 3
    name: str = "extra"


def provide(monkeypatch, *points: EntryPoint) -> None:
    """Let these be the entry points that are installed."""

    def found(group: str, *_: object) -> tuple[EntryPoint, ...]:
        return tuple(p for p in points if p.group == group)

    monkeypatch.setattr(registry, "_entry_points", found)


def point(name: str, value: str = "tests.test_registry:Extra", group: str = registry.PASS_GROUP) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=group)


def test_every_name_loads():
    assert pass_names()[: len(PASSES)] == tuple(PASSES)
    assert target_names()[: len(TARGETS)] == tuple(TARGETS)
    for name in PASSES:
        assert make_pass(name).name == name
    for name in TARGETS:
        assert load_target(name).name == name


def test_options_are_passed_on():
    assert make_pass("calibrate{method=mse}") == Calibrate(method="mse")
    assert make_pass(PassRequest("calibrate", {"method": "minmax"})) == Calibrate(method="minmax")
    assert make_pass("scale-weights{search=true,rounding=nearest}").search is True


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("calibrat", "did you mean 'calibrate'"),
        ("zzz", "no pass is named 'zzz'; known are widen-float16"),
        ("calibrate{metod=mse}", "has no option 'metod'; it has method"),
        ("place{a=1}", "has no option 'a'; it has none"),
        ("calibrate{name=mse}", "has no option 'name'"),
        ("scale-weights{search=maybe}", "option search is 'maybe'; its default is False"),
        ("calibrate{method=3}", "give a str"),
        ("place,observe", "names 2 passes where one is wanted"),
    ],
)
def test_wrong_requests_say_what_is_right(request_, message):
    with pytest.raises(UsageError, match=message):
        make_pass(request_)


def test_targets_with_and_without_profiles():
    assert load_target("arm:cortex-a53") == Arm("cortex-a53")
    with pytest.raises(UsageError, match="it has cortex-a53"):
        load_target("arm:pentium")
    with pytest.raises(UsageError, match="did you mean 'arm'"):
        load_target("arn")


# -- entry points -------------------------------------------------------------------------------------------


def test_third_parties_are_found(monkeypatch):
    provide(monkeypatch, point("extra"), point("engine", "qcompiler.targets.arm:Arm", registry.TARGET_GROUP))
    assert pass_names()[-1] == "extra"
    assert target_names()[-1] == "engine"
    assert load_pass("extra") is Extra
    assert load_target("engine") == Arm()


def test_options_of_third_parties_are_checked_too(monkeypatch):
    provide(monkeypatch, point("extra"))
    made = make_pass("extra{strength=0.5,count=4}")
    assert (made.strength, made.count) == (0.5, 4)
    with pytest.raises(UsageError, match="count"):
        make_pass("extra{strength=1.0,count=many}")


def test_options_without_a_default_take_anything(monkeypatch):
    provide(monkeypatch, point("extra"))
    assert make_pass("extra{strength=high}").strength == "high"


def test_a_missing_option_without_a_default_is_named(monkeypatch):
    provide(monkeypatch, point("extra"))
    with pytest.raises(UsageError, match="strength"):
        make_pass("extra")


def test_a_name_that_is_taken_is_refused(monkeypatch):
    provide(monkeypatch, point("place"))
    with pytest.raises(UsageError, match=r"'place'.*is taken"):
        make_pass("observe")
    provide(monkeypatch, point("extra"), point("extra"))
    with pytest.raises(UsageError, match=r"'extra'.*is taken"):
        pass_names()


def test_a_plugin_that_does_not_import_is_named(monkeypatch):
    provide(monkeypatch, point("extra", "no.such.module:Extra"))
    with pytest.raises(UsageError, match=r"'extra'.*fails to import"):
        make_pass("extra")
