"""Boards behind ssh: the system's own program, with the user's own configuration, keys and known hosts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qcompiler.errors import LatencyUnavailable, RuntimeUnavailable, UsageError
from qcompiler.runtime.devices.bundle import Bundle, Outcome
from qcompiler.runtime.devices.remote import PYTHON, python_of, run_remote

SSH_FAILED = 255
"""Exit code of ssh's own failures."""

_FORM = "give ssh://[USER@]BOARD[:PORT][?python=PATH]"
_ADDRESS = re.compile(
    r"ssh://((?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*))"
    r"(:(?P<port>[0-9]{1,5}))?/?(\?(?P<query>.*))?"
)
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
"""No question is ever asked, and a board that does not answer is given up after some seconds."""


@dataclass(frozen=True, slots=True)
class SshDevice:
    """One login; an empty user and port are those of the user's ssh configuration."""

    name: str
    host: str
    user: str = ""
    port: int | None = None
    python: str = PYTHON
    is_here: bool = False

    @classmethod
    def parse(cls, text: str) -> SshDevice:
        """Return the device that ``ssh://[USER@]BOARD[:PORT][?python=PATH]`` names.

        Raises:
            UsageError: the text has another form.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise UsageError(f"device '{text}' is no ssh address; {_FORM}")
        return cls(
            name=text,
            host=found["host"] or found["address"],
            user=found["user"] or "",
            port=int(found["port"]) if found["port"] else None,
            python=python_of(found["query"] or "", text),
        )

    @property
    def command(self) -> list[str]:
        """Return ssh with its options, up to and with the host."""
        options = [word for key, value in _OPTIONS.items() for word in ("-o", f"{key}={value}")]
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return ["ssh", "-T", *options, *user, *port, "--", self.host]

    def run(self, bundle: Bundle) -> Outcome:
        """Send, run and clean up over one connection, and return how it ended.

        Raises:
            RuntimeUnavailable: no connection, or no login.
            LatencyUnavailable: the connection was lost.
        """
        outcome = run_remote(self.command, self.python, bundle)
        if outcome.code != SSH_FAILED:
            return outcome
        reason = outcome.last_error.rstrip(".")
        if outcome.started:
            raise LatencyUnavailable(
                f"{self.name} was lost while it measured ({reason}); check its power, memory and network"
            )
        login = " ".join([*self.command[:2], *self.command[2 + 2 * len(_OPTIONS) : -2], self.host])
        hint = "; no password is asked for, a key must do" if "denied" in reason else ""
        raise RuntimeUnavailable(f"{self.name} cannot be reached: {reason}{hint}; try '{login} true'")
