"""What is copied to a device, and what comes back from it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

RUNNER = Path(__file__).with_name("_runner.py")
BOOTSTRAP = Path(__file__).with_name("_bootstrap.py")
LIMIT_S = 3600
"""Seconds after which a run ends itself on the device."""

MARK = "qcompile:"
"""What a line for us starts with; whatever else a login prints is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One measurement, as the runner gets it.

    Attributes:
        models: the model files, one or two; they are run in turns.
        labels: what the user calls each of them.
        external: model file -> the files of its external data, beside or below it.
        sample: an ``.npz`` file with the inputs of one run.
        threads: threads of a session.
        seconds: time to measure for.
        layers: also report the time of every node.
    """

    models: tuple[Path, ...]
    labels: tuple[str, ...]
    external: Mapping[Path, tuple[Path, ...]]
    sample: Path
    threads: int
    seconds: float
    layers: bool = False

    def job(self, models: tuple[str, ...], sample: str) -> bytes:
        """Return the job file for models and a sample that lie where these names say, on the device."""
        job = {
            "models": models,
            "sample": sample,
            "threads": self.threads,
            "seconds": self.seconds,
            "layers": self.layers,
            "limit_s": LIMIT_S,
        }
        return json.dumps(job).encode("ascii")

    def write_in_place(self, folder: Path) -> None:
        """Write the job file for a run on this machine, which reads the models where they are."""
        models = tuple(str(p.resolve()) for p in self.models)
        (folder / "job.json").write_bytes(self.job(models, str(self.sample.resolve())))

    def write_stream(self, file: IO[bytes]) -> int:
        """Write the bootstrap and then a tar stream of everything; return the bytes of the bootstrap."""
        head = BOOTSTRAP.read_bytes()
        file.write(head)
        names = tuple(f"{number}/{path.name}" for number, path in enumerate(self.models))
        with tarfile.open(fileobj=file, mode="w|") as archive:
            _add_bytes(archive, "job.json", self.job(names, "sample.npz"))
            archive.add(RUNNER, "runner.py", filter=_plain)
            archive.add(self.sample, "sample.npz", filter=_plain)
            for number, path in enumerate(self.models):
                archive.add(path.resolve(), names[number], filter=_plain)
                for data in self.external[path]:
                    inner = data.relative_to(path.parent.resolve()).as_posix()
                    archive.add(data, f"{number}/{inner}", filter=_plain)
        return len(head)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return an entry without owner, so that nothing of this machine matters on the other."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o600
    return entry


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = _plain(tarfile.TarInfo(name))
    entry.size = len(content)
    archive.addfile(entry, BytesIO(content))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run on a device ended.

    Attributes:
        output: what it printed on stdout.
        errors: what it printed on stderr.
        code: exit code; a signal is its negative number, or 128 and its number.
    """

    output: str
    errors: str
    code: int

    @property
    def lines(self) -> tuple[dict[str, object], ...]:
        """Return the lines that are meant for us; one that was cut short is left out."""
        found = []
        for line in self.output.splitlines():
            if line.startswith(MARK):
                try:
                    found.append(json.loads(line[len(MARK) :]))
                except ValueError:
                    continue
        return tuple(found)

    @property
    def started(self) -> bool:
        """Return True if the device unpacked what it was sent."""
        return any("started" in line for line in self.lines)

    @property
    def signal(self) -> int:
        """Return the signal that ended the run, 0 if none did."""
        return -self.code if self.code < 0 else max(self.code - 128, 0)

    @property
    def last_error(self) -> str:
        """Return the last line of stderr, which is where programs say what went wrong."""
        return ([line.strip() for line in self.errors.splitlines() if line.strip()] or ["no message"])[-1]


class Device(Protocol):
    """A place where models are measured."""

    @property
    def name(self) -> str:
        """Return what the user called it."""
        ...

    @property
    def is_here(self) -> bool:
        """Return True if it runs this machine's own Python, so that a model that fails is the model's fault."""
        ...

    def run(self, bundle: Bundle) -> Outcome:
        """Copy what is needed, run it, leave nothing behind, and return how it ended.

        Raises:
            RuntimeUnavailable: the device cannot be reached.
            LatencyUnavailable: the device was lost while it ran.
        """
        ...
