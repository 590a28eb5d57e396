"""Unpacks what follows it on stdin into a new folder, runs the runner there, and removes the folder.

It is sent to a device ahead of a tar stream and started as ``exec(sys.stdin.buffer.read(SIZE))``, so that one
connection copies, runs and cleans up, and the folder goes away however the run ends: the runtime crashes, the
disk is full, or nobody is at the other end anymore. It keeps to Python 3.8 and imports nothing of this package.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

MARK = "qcompile:"
POLL_SECONDS = 0.25


def say(**entry: object) -> None:
    """Print one line for the other end."""
    print(MARK + json.dumps(entry), flush=True)


def unpack(folder: str) -> None:
    """Write the files that stdin holds into a folder."""
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            if member.isfile() and not Path(member.name).is_absolute() and ".." not in Path(member.name).parts:
                archive.extract(member, folder)


def run(folder: str, parent: int) -> int:
    """Run the runner and return its exit code, 128 and the number for a signal; end it if we are left alone."""
    child = subprocess.Popen(
        [sys.executable, f"{folder}/runner.py", folder],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": folder},  # what the runtime leaves in it goes away too
    )
    try:
        while child.poll() is None:
            if os.getppid() != parent:
                child.kill()
            time.sleep(POLL_SECONDS)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def main() -> int:
    """Unpack, run and clean up; return the exit code."""
    parent, folder = os.getppid(), ""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        folder = tempfile.mkdtemp(prefix="qcompile-")
        say(started=True)
        unpack(folder)
        return run(folder, parent)
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        say(failure={"kind": "disk", "reason": f"{reason} in {folder or tempfile.tempdir or 'the temporary folder'}"})
        return 1
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
