"""Folders that are built once and kept: complete or absent, whatever happens while one is built."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qcompiler.errors import OutputError

MANIFEST = "complete.json"
"""Relative path -> bytes of every file of a complete folder."""


def cache_folder() -> Path:
    """Return where this program keeps what it can make again: ``$XDG_CACHE_HOME/qcompiler`` or below ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if given and Path(given).is_absolute() else Path.home() / ".cache"
    return base / "qcompiler"


def cached(place: Path, build: Callable[[Path], None]) -> Path:
    """Return a folder, built first where it is missing or damaged.

    It is built under another name and renamed when it is whole. Of two processes that want the same folder, one
    builds and the other waits for it.

    Args:
        place: the folder.
        build: fills the empty folder that it is given; the folder moves afterwards.

    Raises:
        OutputError: the file system refused.
    """
    if is_complete(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_name(f"{place.name}.lock")):
            if not is_complete(place):
                _build(place, build)
    except OSError as error:
        where = error.filename or place
        raise OutputError(f"{where}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from error
    return place


def is_complete(place: Path) -> bool:
    """Return True if a folder holds every file that it was built with, each in its size."""
    try:
        sizes = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return all((place / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _build(place: Path, build: Callable[[Path], None]) -> None:
    for left in place.parent.glob(f".{place.name}-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as name:
        made, old = Path(name) / "new", Path(name) / "old"
        made.mkdir()
        build(made)
        files = (p for p in made.rglob("*") if p.is_file() and not p.is_symlink())
        sizes = {str(p.relative_to(made)): p.stat().st_size for p in files}
        (made / MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")
        if place.exists():
            place.rename(old)
        made.rename(place)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system gives back when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
