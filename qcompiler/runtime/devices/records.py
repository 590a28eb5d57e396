"""What a device says about itself beside the latency: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHealth:
    """What a machine says about its own speed at one moment; empty where it does not tell.

    Attributes:
        governors: frequency governors of its processors, each once.
        mhz / allowed_mhz / hardware_mhz: frequency of every processor now, and the most that the system allows
            and the hardware can.
        celsius: thermal zone -> temperature.
        throttled: how often it says it was throttled since it started.
    """

    governors: tuple[str, ...] = ()
    mhz: tuple[float, ...] = ()
    allowed_mhz: tuple[float, ...] = ()
    hardware_mhz: tuple[float, ...] = ()
    celsius: Mapping[str, float] = field(default_factory=dict)
    throttled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """Where and under which conditions a latency was measured.

    Attributes:
        name: the device as the user named it.
        versions: "python", "numpy" and "onnxruntime" there.
        peak_memory_bytes: largest resident memory of the process that ran the models; 0 if it is not known.
        before / after: the machine after the first runs, and after the last.
        drift: median of the last fifth of the blocks over that of the first fifth, less 1.
        throttling: signs that the machine was slowed down while it measured, in words.
        notes: what else to know before figures are compared.
    """

    name: str
    machine: str
    versions: Mapping[str, str]
    peak_memory_bytes: int
    before: DeviceHealth
    after: DeviceHealth
    drift: float
    throttling: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
