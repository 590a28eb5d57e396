"""Signs that a machine was slowed down while it measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qcompiler.records import DeviceHealth

SLOWER = 0.05
"""Blocks at the end that are slower than those at the start by more than this share are a sign."""

LOWER = 0.9
"""Frequencies that fall below this share are a sign."""

HOT_CELSIUS = 80.0
WARMER_CELSIUS = 10.0


def health_of(found: dict[str, Any]) -> DeviceHealth:
    """Return what the runner reported of the machine at one moment."""
    return DeviceHealth(
        governors=tuple(str(g) for g in found["governors"]),
        mhz=tuple(float(f) for f in found["mhz"]),
        allowed_mhz=tuple(float(f) for f in found["allowed_mhz"]),
        hardware_mhz=tuple(float(f) for f in found["hardware_mhz"]),
        celsius={str(k): float(v) for k, v in found["celsius"].items()},
        throttled=int(found["throttled"]),
    )


def drift(blocks: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return how much slower the last fifth of the blocks is than the first, as a share; 0 is no drift.

    Args:
        blocks: run times, [block][model][run]; the model that drifts most counts.
    """
    fifth = max(len(blocks) // 5, 1)
    found = []
    for which in range(len(blocks[0])):
        medians = [float(np.median(block[which])) for block in blocks]
        found.append(float(np.median(medians[-fifth:]) / np.median(medians[:fifth])) - 1.0)
    return max(found)


def throttling_signs(before: DeviceHealth, after: DeviceHealth, drifted: float) -> tuple[str, ...]:
    """Return the signs that a machine was slowed down between two moments, in words."""
    signs = []
    if drifted > SLOWER:
        signs.append(f"the last runs are {100 * drifted:.0f} % slower than the first")
    if before.mhz and after.mhz and max(after.mhz) < LOWER * max(before.mhz):
        signs.append(f"the clock fell from {max(before.mhz):.0f} to {max(after.mhz):.0f} MHz")
    if after.allowed_mhz and after.hardware_mhz and max(after.allowed_mhz) < LOWER * max(after.hardware_mhz):
        most, possible = max(after.allowed_mhz), max(after.hardware_mhz)
        signs.append(f"the system allows {most:.0f} MHz of {possible:.0f}")
    if after.throttled > before.throttled:
        signs.append(f"the processor says that it was throttled {after.throttled - before.throttled} times")
    for zone, degrees in after.celsius.items():
        rise = degrees - before.celsius.get(zone, degrees)
        if degrees >= HOT_CELSIUS or rise >= WARMER_CELSIUS:
            signs.append(f"{zone} is at {degrees:.0f} C, {rise:+.0f} since the start")
    return tuple(signs)
