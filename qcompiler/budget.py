"""How long a search may go on, what it may use, and what it has finished so far.

A long pass polls ``context.budget.spent()`` between two parts of its work and returns the best it has so far once
that is true; it asks ``allows`` before it takes much memory; and it keeps every finished part, a layer or a block,
with ``context.checkpoint``, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Cause = Literal["", "interrupted", "time", "memory"]
"""Why a search has to end; "" while it may go on."""

_STATM = Path("/proc/self/statm")


class Budget:
    """A deadline, a limit on memory, and a request to stop. Without any of them a search runs to its end.

    Args:
        seconds: from now until the search must end; None for no limit.
        memory_bytes: how much this process may use in all, by its resident set; None for no limit.
    """

    def __init__(self, *, seconds: float | None = None, memory_bytes: int | None = None) -> None:
        self.memory_bytes = memory_bytes
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._kept_back = 0.0
        self._stop = threading.Event()
        self._out_of_memory = False

    @property
    def limited(self) -> bool:
        """True if there is a deadline or a limit on memory."""
        return self._deadline is not None or self.memory_bytes is not None

    @property
    def stopping(self) -> bool:
        """True once somebody asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask every search under this budget to end with the best it has; safe in a signal handler."""
        self._stop.set()

    def spent(self) -> bool:
        """Return True if a search must end now and return the best it has found."""
        return bool(self.cause())

    def cause(self) -> Cause:
        """Return why a search must end, "" while it may go on. Too much memory once is too much for good."""
        if self.stopping:
            return "interrupted"
        if self.left_s() <= 0:
            return "time"
        self._out_of_memory = self._out_of_memory or not self.allows(0)
        return "memory" if self._out_of_memory else ""

    def left_s(self) -> float:
        """Return the seconds that a search has left, at least 0; infinity without a deadline."""
        if self._deadline is None:
            return float("inf")
        return max(0.0, self._deadline - self._kept_back - time.monotonic())

    def allows(self, more_bytes: int) -> bool:
        """Return True if this process may take so many more bytes of memory.

        Memory of an accelerator does not count. Where the system does not tell what is in use, the estimate
        alone is held against the limit.
        """
        if self.memory_bytes is None:
            return True
        return (resident_bytes() or 0) + more_bytes <= self.memory_bytes

    def keep_back(self, seconds: float) -> None:
        """Let searches end so much before the deadline: what they find has to be written and verified, too."""
        self._kept_back = seconds

    def share(self, parts: int) -> Budget:
        """Return a budget with an equal part of the time that is left, stopped by the same request."""
        made = Budget(memory_bytes=self.memory_bytes)
        made._stop = self._stop
        if self._deadline is not None:
            now = time.monotonic()
            made._deadline = now + (self._deadline - now) / parts
        return made


def resident_bytes() -> int | None:
    """Return the memory that this process holds: now where the system tells, else its peak; None if unknown."""
    if _STATM.exists():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(slots=True)
class CheckpointLog:
    """What the checkpoints of one compilation did.

    Attributes:
        reused: parts of an earlier search that were taken over.
        notes: what was found and not used, and why; what could not be kept.
    """

    reused: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


class Checkpoint:
    """Results of finished parts of a long search, kept in a folder until the search is complete.

    Results lie under a fingerprint of everything they depend on, so that what belongs to another search is never
    found. What cannot be read counts as not there: a checkpoint saves time, it never decides.

    Args:
        folder: the folder, made when something is kept; None keeps nothing.
        fingerprint: returns a text of everything that the results depend on; only called if it is needed.
        log: where to say what happened.
    """

    def __init__(
        self,
        folder: Path | None = None,
        fingerprint: Callable[[], str] = str,
        log: CheckpointLog | None = None,
    ) -> None:
        self.log = CheckpointLog() if log is None else log
        self._folder, self._fingerprint, self._name = folder, fingerprint, ""
        self._place: Path | None = None

    def of(self, name: str, fingerprint: Callable[[], str]) -> Checkpoint:
        """Return the checkpoint of one part of this search.

        Args:
            name: of the part, such as the name of a pass; in kebab case.
            fingerprint: returns a text of what the results depend on beside what this checkpoint knows.
        """
        if self._folder is None:
            return self
        made = Checkpoint(self._search_folder(), fingerprint, self.log)
        made._name = f"{name}-"
        return made

    def load(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Return the arrays that were saved under a key, None if there are none that can be read."""
        if self._folder is None:
            return None
        path = self._search_folder() / _file_name(key)
        try:
            if not path.exists():
                return None
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
            if found.pop(_KEY).item() != key:
                raise ValueError("it was saved under another key")
        except _UNREADABLE as error:
            self.log.note(f"a saved part of an earlier search is not used: {path.name} is unreadable ({error})")
            return None
        self.log.reused += 1
        return found

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep the arrays of a finished part; whole or not at all, whenever the process ends.

        A file system that refuses costs the checkpoint, not the search.

        Raises:
            ValueError: an array holds Python objects.
        """
        if self._folder is None:
            return
        content = _packed({**arrays, _KEY: np.asarray(key)})
        path = self._search_folder() / _file_name(key)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            self.log.note(f"{self._folder}: finished parts could not be kept ({error.strerror or error})")

    def remove(self) -> None:
        """Remove everything that was kept in the folder, also of other searches; what others put there stays."""
        if self._folder is None or not self._folder.is_dir():
            return
        with suppress(OSError):
            for entry in self._folder.iterdir():
                if entry.is_dir() and not entry.is_symlink() and _SEARCH.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)
            self._folder.rmdir()

    @property
    def kept(self) -> bool:
        """True if something lies in the folder."""
        return self._folder is not None and self._folder.is_dir()

    def _search_folder(self) -> Path:
        """Return where the results of this very search lie; notes once that only others do."""
        if self._place is None:
            folder = self._folder or Path()
            digest = hashlib.sha256(self._fingerprint().encode("utf-8")).hexdigest()[:_DIGITS]
            self._place = folder / f"{self._name}{digest}"
            if not self._place.exists() and any(folder.glob(f"{self._name}{'[0-9a-f]' * _DIGITS}")):
                what = f"'{self._name[:-1]}' on another plan" if self._name else "another search"
                self.log.note(f"saved parts of {what} are not used: model, recipe, data, plan or versions differ")
        return self._place


NO_CHECKPOINT = Checkpoint()
"""Keeps nothing."""

_KEY = "__key__"
_DIGITS = 32
_SEARCH = re.compile(rf"[0-9a-f]{{{_DIGITS}}}")
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What a damaged file may raise."""


def _file_name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8")).hexdigest()[:_DIGITS] + ".npz"


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays as the bytes of an ``.npz``, each with its checksum; objects are refused."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    return content.getvalue()
