"""Names to passes and targets: the built-in tables, and third parties' entry points."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from qcompiler.errors import UsageError
from qcompiler.passes import PASSES
from qcompiler.protocols import Pass, Target
from qcompiler.recipe import PassRequest, parse_passes
from qcompiler.targets import TARGETS

PASS_GROUP = "qcompiler.passes"
TARGET_GROUP = "qcompiler.targets"


def pass_names() -> tuple[str, ...]:
    """Return the names of all passes, built-in ones first."""
    return (*PASSES, *sorted(_plugins(PASS_GROUP, PASSES)))


def target_names() -> tuple[str, ...]:
    """Return the names of all targets, built-in ones first."""
    return (*TARGETS, *sorted(_plugins(TARGET_GROUP, TARGETS)))


def load_pass(name: str) -> Callable[..., Pass]:
    """Return the class (or factory) of a pass.

    Raises:
        UsageError: no pass has this name, or a plugin fails to import.
    """
    return cast("Callable[..., Pass]", _load("pass", name, PASSES, PASS_GROUP))


def load_target(name: str) -> Target:
    """Return a target by ``name`` or ``name:profile``.

    Raises:
        UsageError: no target has this name, or it has no such profile.
    """
    base, _, profile = name.partition(":")
    made = _load("target", base, TARGETS, TARGET_GROUP)
    profiles = getattr(made, "profiles", ())
    if not profile:
        return cast("Target", made())
    if profile not in profiles:
        known = f"it has {', '.join(profiles)}" if profiles else "it has no profiles"
        raise UsageError(f"target '{base}' has no profile '{profile}'; {known}")
    return cast("Target", made(profile))


def make_pass(request: str | PassRequest) -> Pass:
    """Return a pass from its name and options, such as ``calibrate{method=mse}``.

    Raises:
        UsageError: an unknown pass or option, or an option of the wrong type.
    """
    if isinstance(request, str):
        found = parse_passes(request)
        if len(found) != 1:
            raise UsageError(f"{request!r} names {len(found)} passes where one is wanted")
        request = found[0]
    made = load_pass(request.name)
    fields: dict[str, dataclasses.Field[Any]] = {}
    if dataclasses.is_dataclass(made):
        fields = {f.name: f for f in dataclasses.fields(made) if f.init}
    for key, value in request.options.items():
        if key not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            raise UsageError(f"pass '{request.name}' has no option '{key}'; {known}")
        _check_type(request.name, key, value, fields[key].default)
    for key, field in fields.items():
        if key not in request.options and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"pass '{request.name}' needs option '{key}'; give {request.name}{{{key}=...}}")
    return made(**request.options)


def _check_type(name: str, key: str, value: object, default: object) -> None:
    """Refuse a value of another type than the default's; an option without a default takes anything."""
    if default is dataclasses.MISSING:
        return
    kinds = [bool if isinstance(v, bool) else str if isinstance(v, str) else float for v in (value, default)]
    if kinds[0] is not kinds[1]:
        raise UsageError(
            f"pass '{name}': option {key} is {value!r}; its default is {default!r}, give a {type(default).__name__}"
        )


def _load(kind: str, name: str, table: Mapping[str, str], group: str) -> Any:  # noqa: ANN401
    plugins = _plugins(group, table)
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in plugins:
        point = plugins[name]
        try:
            return point.load()
        except Exception as error:
            raise UsageError(f"{kind} '{name}' ({point.value}) fails to import: {error}") from error
    known = (*table, *sorted(plugins))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
    raise UsageError(f"no {kind} is named '{name}'; {hint}")


def _plugins(group: str, builtin: Mapping[str, str]) -> dict[str, EntryPoint]:
    """Return third-party entry points; a name that is taken is an error, not a silent override."""
    found: dict[str, EntryPoint] = {}
    for point in _entry_points(group, tuple(sys.path)):
        if point.name in builtin or point.name in found:
            raise UsageError(f"'{point.name}' ({point.value}) takes a name of group {group} that is taken")
        found[point.name] = point
    return found


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the installed entry points of a group; every folder of the path is searched once, not per name."""
    return tuple(entry_points(group=group))
