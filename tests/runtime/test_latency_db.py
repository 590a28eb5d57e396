"""The latency database: what is kept, and what happens to files that are none."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.errors import OutputError
from qcompiler.runtime.latency_db import Conditions, LatencyDatabase, NodeLatency

HERE = Conditions(threads=1, runtime="1.31", device="a machine")
KEY = ("signature", "integer")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    database = LatencyDatabase(tmp_path / "latency.sqlite")
    database.write({KEY: NodeLatency(1.5, 2.0)}, HERE)
    again = LatencyDatabase(tmp_path / "latency.sqlite")
    assert again.read([KEY, ("other", "float")], HERE) == {KEY: NodeLatency(1.5, 2.0)}
    assert not again.set_aside


@pytest.mark.parametrize(
    "other",
    [Conditions(2, "1.31", "a machine"), Conditions(1, "1.32", "a machine"), Conditions(1, "1.31", "another")],
)
def test_other_conditions_are_other_latencies(tmp_path: Path, other: Conditions) -> None:
    database = LatencyDatabase(tmp_path / "latency.sqlite")
    database.write({KEY: NodeLatency(1.5, 2.0)}, HERE)
    assert database.read([KEY], other) == {}


def test_the_faster_measurement_stays(tmp_path: Path) -> None:
    database = LatencyDatabase(tmp_path / "latency.sqlite")
    for value in (NodeLatency(3.0, 4.0), NodeLatency(1.0, 5.0), NodeLatency(2.0, 2.5)):
        database.write({KEY: value}, HERE)
    assert database.read([KEY], HERE) == {KEY: NodeLatency(1.0, 2.5)}


@pytest.mark.parametrize("content", [b"this is no database", b"SQLite format 3\x00" + bytes(200)])
def test_a_broken_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latency.sqlite"
    path.write_bytes(content)
    database = LatencyDatabase(path)
    assert "no database of this version" in database.set_aside
    assert path.with_suffix(".unreadable").read_bytes() == content
    database.write({KEY: NodeLatency(1.0, 1.0)}, HERE)
    assert database.read([KEY], HERE)


def test_another_schema_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert LatencyDatabase(path).set_aside


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="XDG_CACHE_HOME"):
        LatencyDatabase(tmp_path / "file" / "latency.sqlite")


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    script = (
        "import sys; from pathlib import Path\n"
        "from qcompiler.runtime.latency_db import *\n"
        "db = LatencyDatabase(Path(sys.argv[1]))\n"
        "for i in range(50):\n"
        "    db.write({(f'{sys.argv[2]}{i}', 'float'): NodeLatency(1.0, 1.0)}, Conditions(1, 'r', 'd'))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    assert [p.wait() for p in running] == [0, 0]
    wanted = [(f"{name}{i}", "float") for name in "ab" for i in range(50)]
    assert len(LatencyDatabase(path).read(wanted, Conditions(1, "r", "d"))) == 100
