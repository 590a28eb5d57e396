"""From ``qcompile.toml`` and command-line flags to a Recipe; every key and value is checked."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from qcompiler.errors import UsageError
from qcompiler.recipe import (
    CALLABLE,
    Floors,
    ImagePreprocessing,
    MatchRule,
    Recipe,
    bits_fields,
    parse_embedding_bits,
    parse_passes,
)
from qcompiler.sparsity import parse_sparsity

_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_Reader: TypeAlias = Callable[[Any], Any]
"""Reads one value; a ValueError says what it must be."""


def parse_size(text: str | int) -> int:
    """Return bytes for a size such as ``500KB`` (1000 bytes each), ``1.2MB`` or ``1MiB`` (1048576 bytes).

    Raises:
        UsageError: not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if not found or found[2].upper() not in _SIZE_UNITS:
        raise UsageError(f"{text!r} is not a size; write bytes, or a number with KB, MB, GB, KiB, MiB or GiB")
    return round(float(found[1]) * _SIZE_UNITS[found[2].upper()])


def parse_duration(text: str | float) -> float:
    """Return seconds for a duration such as ``90s``, ``10min``, ``2h`` or ``1h30min``; a bare number is seconds.

    Raises:
        UsageError: not a duration.
    """
    found = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)min)?(?:(\d+(?:\.\d+)?)s?)?", str(text).replace(" ", "")
    )
    if not found or not any(found.groups()):
        raise UsageError(f"{text!r} is not a duration; write 90s, 10min, 2h or 1h30min")
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True) if part)


def parse_share(text: str | float) -> float:
    """Return a share from 0 to 1 for ``0.97``, ``97`` or ``97%``.

    Raises:
        UsageError: not a number.
    """
    percent = isinstance(text, str) and text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%") if isinstance(text, str) else text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not a share; write 0.97 or 97%") from error
    return value / 100 if percent or value > 1 else value


def load_recipe(path: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a TOML file with ``overrides`` laid over it.

    Args:
        path: a file such as ``qcompile.toml``; None starts from the defaults. Relative paths in it are taken
            from its folder.
        overrides: the same keys as in the file, the tables as mappings; None means not given.

    Raises:
        UsageError: the file cannot be read, or holds a key or a value that makes no sense.
    """
    document = {} if path is None else _read_toml(path)
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(document.get(key, {}), Mapping):
            given = {k: v for k, v in value.items() if v is not None}
            document[key] = {**document.get(key, {}), **given}
        elif value is not None:
            document[key] = value
    where = str(path) if path else "recipe"
    plain = {k: v for k, v in document.items() if k not in ("floors", "image", "match")}
    values = _convert(plain, _KEYS, where, extra=("floors", "image", "match"))
    if "bits" in values:
        values.update(bits_fields(values.pop("bits")))
    for key, table, make in (("floors", _FLOOR_KEYS, Floors), ("image", _IMAGE_KEYS, ImagePreprocessing)):
        if key in document:
            values[key] = make(**_convert(document[key], table, f"{where} [{key}]"))
    rules = document.get("match", {})
    if not isinstance(rules, Mapping):
        raise UsageError(f'{where}: match must be tables, [match."regex"]')
    values["rules"] = tuple(
        MatchRule(pattern=pattern, **_convert(rule, _MATCH_KEYS, f'{where} [match."{pattern}"]'))
        for pattern, rule in rules.items()
    )
    return Recipe(**values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for key in ("data", "labels", "replay", "token_counts"):
        value = document.get(key)
        if isinstance(value, str) and not CALLABLE.match(value):
            document[key] = str(path.parent / value)
    return document


def _convert(
    table: object, keys: Mapping[str, tuple[str, _Reader]], where: str, extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the fields of a table, each read and checked; a key nobody knows is refused."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} is {table!r}; it must be a table")
    values = {}
    for key, value in table.items():
        if key not in keys:
            close = difflib.get_close_matches(str(key), [*keys, *extra], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join([*keys, *extra])}"
            raise UsageError(f"{where}: unknown key {key!r}; {hint}")
        name, read = keys[key]
        try:
            values[name] = read(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: {key} is {value!r}; it must be {error}") from error
    return values


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("an integer")
    return value


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        raise ValueError("a number")
    return float(value)


def _texts(value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, Iterable) or not all(isinstance(item, str) and item for item in items):
        raise ValueError("a text or a list of texts")
    return tuple(items)


def _passes(value: object) -> tuple[str, ...]:
    return tuple(str(request) for text in _texts(value) for request in parse_passes(text))


def _numbers(value: object) -> tuple[float, ...]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    if not items:
        raise ValueError("a number or a list of numbers")
    return tuple(_number(item) for item in items)


def _pair(value: object) -> tuple[float, float]:
    numbers = _numbers(value)
    if len(numbers) != 2:
        raise ValueError("two numbers, [low, high]")
    return numbers[0], numbers[1]


def _image_size(value: object) -> tuple[int, int]:
    sides = value if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or any(_integer(side) < 1 for side in sides):
        raise ValueError("[height, width] in pixels")
    return sides[0], sides[1]


_KEYS: dict[str, tuple[str, _Reader]] = {
    "targets": ("targets", _texts),
    "data": ("data", _text),
    "labels": ("labels", _text),
    "metric": ("metric", _text),
    "bits": ("bits", _text),
    "sparsity": ("sparsity", lambda value: parse_sparsity(str(value))),
    "sparse_format": ("sparse_format", _text),
    "embedding_bits": ("embedding_bits", parse_embedding_bits),
    "embedding_bytes": ("embedding_bytes", parse_size),
    "token_counts": ("token_counts", _text),
    "effort": ("effort", _integer),
    "max_time": ("max_time_s", parse_duration),
    "fine_tune": ("fine_tune_minutes", _number),
    "decode": ("decode", _flag),
    "max_memory": ("max_memory_bytes", parse_size),
    "threads": ("threads", _integer),
    "verify": ("verify", _text),
    "calibration_samples": ("calibration_samples", _integer),
    "verify_samples": ("verify_samples", _integer),
    "passes": ("passes", _passes),
    "skip_passes": ("skip_passes", _texts),
    "dump_after": ("dump_after", _texts),
    "seed": ("seed", _integer),
    "require_data": ("require_data", _flag),
    "allow_unchanged": ("allow_unchanged", _flag),
    "replay": ("replay", _text),
}
_FLOOR_KEYS: dict[str, tuple[str, _Reader]] = {
    "min_sqnr": ("min_sqnr_db", _number),
    "min_agreement": ("min_agreement", parse_share),
    "max_drop": ("max_drop", _number),
    "max_size": ("max_size_bytes", parse_size),
    "max_latency_ratio": ("max_latency_ratio", _number),
}
_IMAGE_KEYS: dict[str, tuple[str, _Reader]] = {
    "size": ("size", _image_size),
    "resize": ("resize", _integer),
    "layout": ("layout", _text),
    "channels": ("channels", _text),
    "range": ("range", _pair),
    "mean": ("mean", _numbers),
    "std": ("std", _numbers),
}
_MATCH_KEYS: dict[str, tuple[str, _Reader]] = {
    "bits": ("num_bits", _integer),
    "sparsity": ("sparsity", parse_share),
    "scheme": ("scheme", _text),
    "keep_float": ("keep_float", _flag),
}
