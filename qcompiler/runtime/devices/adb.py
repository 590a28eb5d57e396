"""Android devices behind the Android Debug Bridge, by the system's own ``adb``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qcompiler.errors import LatencyUnavailable, RuntimeUnavailable, UsageError
from qcompiler.runtime.devices.bundle import Bundle, Outcome
from qcompiler.runtime.devices.remote import PYTHON, python_of, run_program, run_remote

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class AdbDevice:
    """One device; an empty serial is the only one that is connected."""

    name: str
    serial: str = ""
    python: str = PYTHON
    is_here: bool = False

    @classmethod
    def parse(cls, text: str) -> AdbDevice:
        """Return the device that ``adb[:SERIAL][?python=PATH]`` names.

        Raises:
            UsageError: the text has another form.
        """
        address, _, query = text.partition("?")
        _, colon, serial = address.partition(":")
        if address != "adb" and not (colon and _SERIAL.fullmatch(serial)):
            raise UsageError(f"device '{text}' is no adb device; give adb[:SERIAL][?python=PATH]")
        return cls(name=text, serial=serial, python=python_of(query, text))

    @property
    def command(self) -> list[str]:
        """Return adb with the device that it is to talk to."""
        return ["adb", *(["-s", self.serial] if self.serial else [])]

    def run(self, bundle: Bundle) -> Outcome:
        """Send, run and clean up over one shell, and return how it ended.

        Raises:
            RuntimeUnavailable: no device, several, or one that does not trust this machine.
            LatencyUnavailable: the device went away.
        """
        self._check()
        outcome = run_remote([*self.command, "shell", "-T"], self.python, bundle)
        if outcome.code and outcome.started and len(outcome.lines) == 1 and not outcome.signal:
            self._check(LatencyUnavailable)
        return outcome

    def _check(self, error: type[RuntimeUnavailable] = RuntimeUnavailable) -> None:
        state = run_program([*self.command, "get-state"], timeout=_TIMEOUT_S)
        if state.code or state.output.strip() != "device":
            reason = state.output.strip() or state.last_error.removeprefix("error: ")
            raise error(f"{self.name} cannot be reached: {reason}; 'adb devices' lists what is connected")
