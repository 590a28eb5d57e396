"""What tests of devices share: a board to be looked into, and waiting."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Board:
    """What a test needs to know of the board."""

    folder: Path
    port: int
    server: int

    @property
    def device(self):
        """Return the name of the device; the Python is named, since a shell's start files may change PATH."""
        return f"ssh://board?python={self.folder}/bin/python3"

    @property
    def left_over(self):
        """Return what lies in the board's temporary folder."""
        return [path.name for path in (self.folder / "remote").iterdir()]

    def python(self, name, script):
        """Put a Python on the board that a shell script starts, and return the name of the device that has it."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return f"ssh://board?python={path}"

    def python_with(self, name, sitecustomize):
        """Put a Python on the board that runs some code before the runner, and return the device's name."""
        site = self.folder / f"site-{name}"
        site.mkdir()
        head = "import sys\nif 'runner.py' in ' '.join(sys.orig_argv):\n"
        (site / "sitecustomize.py").write_text(head + textwrap.indent(sitecustomize, "    "))
        return self.python(name, f'PYTHONPATH={site} exec {sys.executable} "$@"')

    def die(self):
        """End every connection, as a board does that loses its power."""
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.server)], capture_output=True, text=True)
        for pid in children.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


def wait_for(condition, what):
    """Wait until a condition holds."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain for {what}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0
