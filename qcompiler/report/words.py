"""Figures and names as text: units, percentages, and names that are safe to print."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

ELLIPSIS = "..."
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def printable(text: str) -> str:
    """Return a text in one line, control characters spelled out, so that no name drives a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shorten(text: str, width: int) -> str:
    """Return a printable text of at most ``width`` characters; names differ at the ends, the middle goes."""
    text = printable(text)
    if len(text) <= width:
        return text
    if width <= len(ELLIPSIS) + 2:
        return text[:width]
    tail = (width - len(ELLIPSIS)) * 3 // 5
    return text[: width - len(ELLIPSIS) - tail] + ELLIPSIS + text[-tail:]


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 layer`` or ``2 layers``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def by_kind(choices: Mapping[str, str]) -> dict[str, str]:
    """Return choices with those of one kind taken together: ``form of A``, ``form of B`` become ``form of 2``.

    Args:
        choices: what was chosen by name; a kind is what stands before " of ".
    """
    kinds: dict[str, list[str]] = {}
    for key in choices:
        kinds.setdefault(key.partition(" of ")[0], []).append(key)
    found = {}
    for kind, keys in kinds.items():
        tally = Counter(choices[key] for key in keys)
        text = ", ".join(f"{value} {number}" for value, number in tally.items())
        found.update({f"{kind} of {len(keys)}": text} if len(keys) > 1 else {keys[0]: choices[keys[0]]})
    return found


def bytes_text(size: float) -> str:
    """Return a size in decimal units with three figures, such as ``1.30 MB``."""
    value, unit = float(size), _BYTE_UNITS[0]
    for unit in _BYTE_UNITS:
        if abs(value) < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        value /= 1000
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f} {unit}"


def figure(value: float | None, unit: str = "") -> str:
    """Return a value with its unit; ``-`` for a value that does not exist."""
    if value is None:
        return "-"
    if value == math.inf and unit == "dB":
        return "identical"
    if not math.isfinite(value):
        return f"{value} {unit}".strip()
    if unit == "bytes":
        return bytes_text(value)
    if unit in ("x", "ratio", "of the original"):
        return f"{value:.3g}x"
    if unit in ("%", "share"):
        return f"{value * (100 if unit == 'share' else 1):.1f}%"
    if unit == "us":
        return f"{value:.1f} us"
    if unit == "dB":
        return f"{value:.1f} dB"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{value:,.0f} {unit}".strip()
    return f"{value:.4g} {unit}".strip()


def output_db(value: float | None) -> str:
    """Return the SQNR of a model output; None means that both outputs are identical."""
    return "identical" if value is None else figure(value, "dB")


def share(part: float, whole: float) -> str:
    """Return ``part`` of ``whole`` in percent, or ``-`` where there is no whole."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def span(bounds: tuple[float, float] | None) -> str:
    """Return a range of real values, such as ``-1.5 .. 2.25``."""
    return "-" if bounds is None else f"{bounds[0]:.4g} .. {bounds[1]:.4g}"


def noise_share(sqnr_db: float) -> float:
    """Return noise power over signal power for an SQNR in dB (0.01 for 20 dB), at most 1e6."""
    return min(10 ** (-sqnr_db / 10), 1e6) if math.isfinite(sqnr_db) else 1e6


def percent(part: float) -> str:
    """Return a share of 1 in percent with two figures, such as ``0.042%``."""
    return ">1000%" if part > 10 else f"{100 * part:.2g}%" if part < 0.995 else f"{100 * part:.0f}%"
