"""Where models are measured: this machine, a board behind ssh, a phone behind adb; one runner for all.

A kind of device is one file with a class that has ``parse`` and what ``bundle.Device`` lists, and one line in
``SCHEMES``.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple, cast

from qcompiler.errors import UsageError
from qcompiler.runtime.devices.bundle import Bundle, Device, Outcome


class Scheme(NamedTuple):
    """How a kind of device is named, and the class that it is."""

    form: str
    place: str


SCHEMES: dict[str, Scheme] = {
    "local": Scheme("local", "qcompiler.runtime.devices.local:LocalDevice"),
    "ssh": Scheme("ssh://[USER@]BOARD[:PORT]", "qcompiler.runtime.devices.ssh:SshDevice"),
    "adb": Scheme("adb[:SERIAL]", "qcompiler.runtime.devices.adb:AdbDevice"),
}
"""What stands before the first ``:`` or ``?`` -> the kind of device."""


def open_device(text: str) -> Device:
    """Return the device that a user names.

    Raises:
        UsageError: nothing of that kind is known, or the name has the wrong form.
    """
    scheme = text.partition("?")[0].partition(":")[0]
    if scheme not in SCHEMES:
        forms = ", ".join(s.form for s in SCHEMES.values())
        raise UsageError(f"device '{text}' is not known; give one of {forms}, emulated:BOARD")
    module, _, name = SCHEMES[scheme].place.partition(":")
    return cast(Device, getattr(import_module(module), name).parse(text))


__all__ = ["SCHEMES", "Bundle", "Device", "Outcome", "Scheme", "open_device"]
