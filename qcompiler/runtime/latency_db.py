"""A local database of node latencies, so that a second model or a second run measures only what is new."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import OutputError

SCHEMA = 2
WAIT_S = 30.0
_TABLE = """
CREATE TABLE IF NOT EXISTS node_latency (
    signature TEXT NOT NULL,
    precision TEXT NOT NULL,
    threads INTEGER NOT NULL,
    runtime TEXT NOT NULL,
    device TEXT NOT NULL,
    min_us REAL NOT NULL,
    typical_us REAL NOT NULL,
    PRIMARY KEY (signature, precision, threads, runtime, device)
)
"""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a latency depends on beside the node: threads, runtime version and device."""

    threads: int
    runtime: str
    device: str


@dataclass(frozen=True, slots=True)
class NodeLatency:
    """Latency of one node, in microseconds: the fastest run, and the mean of the faster half."""

    min_us: float
    typical_us: float


def default_path() -> Path:
    """Return where the database lies: under ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "qcompiler" / "latency.sqlite"


class LatencyDatabase:
    """Reads and writes node latencies; two processes may use one file at once.

    A file that is no database, or was written by another version of the schema, is set aside and begun anew:
    a latency can always be measured again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else default_path()
        self.set_aside = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self._readable():
                aside = self.path.with_suffix(".unreadable")
                self.path.replace(aside)
                self.set_aside = f"{self.path.name} was no database of this version and is now {aside.name}"
            with self._connection() as connection:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"{self.path}: cannot keep latencies there ({error}); set XDG_CACHE_HOME") from error

    def read(self, wanted: Iterable[tuple[str, str]], conditions: Conditions) -> dict[tuple[str, str], NodeLatency]:
        """Return the known latencies among (signature, precision) pairs."""
        found: dict[tuple[str, str], NodeLatency] = {}
        query = (
            "SELECT min_us, typical_us FROM node_latency "
            "WHERE signature = ? AND precision = ? AND threads = ? AND runtime = ? AND device = ?"
        )
        with self._connection() as connection:
            for signature, precision in wanted:
                key = (signature, precision, conditions.threads, conditions.runtime, conditions.device)
                row = connection.execute(query, key).fetchone()
                if row is not None:
                    found[signature, precision] = NodeLatency(*row)
        return found

    def write(self, measured: Mapping[tuple[str, str], NodeLatency], conditions: Conditions) -> None:
        """Keep latencies; of two for the same node the faster one stays."""
        statement = (
            "INSERT INTO node_latency VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (signature, precision, threads, runtime, device) DO UPDATE SET "
            "min_us = min(min_us, excluded.min_us), typical_us = min(typical_us, excluded.typical_us)"
        )
        where = (conditions.threads, conditions.runtime, conditions.device)
        rows = [(*key, *where, value.min_us, value.typical_us) for key, value in measured.items()]
        with self._connection() as connection:
            connection.executemany(statement, rows)

    def _readable(self) -> bool:
        try:
            with self._connection() as connection:
                (found,) = connection.execute("PRAGMA user_version").fetchone()
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError:
            return False
        return found in (0, SCHEMA)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=WAIT_S)
        try:
            with connection:
                yield connection
        finally:
            connection.close()
