"""Ctrl-C and a request to terminate, sent to a real process; and the search that goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qcompiler.passes import WITH_DATA
from tests import searches
from tests.compiling import samples, start
from tests.conftest import ROOT
from tests.models import dense_net, save

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX does")

PATIENCE_S = 120
RESULT = ("model.onnx", "plan.json", "plan.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a small net, data for it, and searches as an installed distribution."""
    made = tmp_path_factory.mktemp("interrupts")
    net = dense_net(width=64)
    data = samples(start(net).model, count=192)
    np.savez(made / "data.npz", **{k: np.concatenate([s[k] for s in data.samples]) for k in data[0]})
    save(net, made)
    searches.install(made / "site")
    return made


class Compilation:
    """A compilation in a process of its own, as a terminal starts it: in a group that Ctrl-C reaches as a whole."""

    def __init__(self, folder: Path, out: Path, *names: str, words: tuple[str, ...] = (), **environment: str) -> None:
        self.out, self.log = out, out.with_name("log.txt")
        passes = ",".join([*WITH_DATA, "spoil", *names])
        given = ["--target", "reference", "--data", "data.npz", "--min-sqnr", "1", "--min-agreement", "0"]
        command = [sys.executable, "-m", "qcompiler", "model.onnx", *given, "--passes", passes, "-o", str(out), *words]
        paths = os.pathsep.join([str(ROOT), str(folder / "site")])
        told = {**os.environ, "PYTHONPATH": paths, "SEARCH_LOG": str(self.log), **environment}
        self.process = subprocess.Popen(
            command, cwd=folder, env=told, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
        )

    def computed(self) -> list[str]:
        """Return the parts that searches computed, without those that were found again."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line != searches.WAITING]

    def wait(self) -> Compilation:
        """Return once the search waits."""
        end = time.monotonic() + PATIENCE_S
        while not self.log.exists() or searches.WAITING not in self.log.read_text():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "the search never started"
            time.sleep(0.02)
        return self

    def send(self, number: int) -> Compilation:
        os.killpg(self.process.pid, number)
        return self

    def heard(self) -> Compilation:
        """Return once the process has said that it finishes."""
        line = ""
        while "finishing with the best result so far" not in line:
            line = self.process.stderr.readline()
            assert line, self.process.communicate()
        return self

    def end(self) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def search(self) -> dict:
        return json.loads((self.out / "report.json").read_text())["measured"]["search"]


@pytest.fixture
def compiling(folder, tmp_path):
    """Give a function that starts a compilation; what still runs at the end is ended."""
    started = []

    def compilation(*names, out="out", **options):
        place = tmp_path / out
        place.parent.mkdir(exist_ok=True)
        started.append(Compilation(folder, place, *names, **options))
        return started[-1]

    yield compilation
    for made in started:
        if made.process.poll() is None:
            os.killpg(made.process.pid, signal.SIGKILL)
            made.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_finishes_with_the_best_verified_result(compiling, number):
    run = compiling("mend", "worsen", SEARCH_HOLD="1").wait().send(number).heard()
    code, shown, errors = run.end()
    assert code == 0, errors
    assert "interrupted: best verified result so far" in shown
    search = run.search()
    assert search["ended"] == "interrupted"
    assert [stage["outcome"] for stage in search["stages"]] == ["verified", "better"]
    assert search["notes"] == ["not run: worsen"]
    assert len(run.computed()) == 1
    assert all((run.out / name).stat().st_size for name in RESULT)
    assert run.out.with_name("out.search").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_at_once(compiling, number, tmp_path):
    run = compiling("mend", SEARCH_HOLD="1", SEARCH_DEAF="1").wait().send(number).heard().send(number)
    code, _, errors = run.end()
    assert (code, errors.splitlines()[-1]) == (130, "error: interrupted")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.txt", "out.search"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_a_verified_result_the_first_signal_stops(compiling, number, tmp_path):
    code, _, errors = compiling("linger", "mend").wait().send(number).end()
    assert (code, errors.splitlines()[-1]) == (130, "error: interrupted")
    assert [p.name for p in tmp_path.iterdir()] == ["log.txt"]


def test_a_stopped_search_goes_on_and_gives_the_same_bytes(compiling, tmp_path):
    whole = compiling("mend", out="whole/out")
    assert whole.end()[0] == 0
    parts = whole.computed()
    assert len(parts) > 1
    assert whole.search()["stages"][1]["reused"] == 0
    stopped = compiling("mend", out="stopped/out", SEARCH_HOLD="1", SEARCH_DEAF="1").wait().send(signal.SIGKILL)
    assert stopped.end()[0] == -signal.SIGKILL
    stopped.log.unlink()
    again = compiling("mend", out="stopped/out")
    assert again.end()[0] == 0
    assert again.computed() == parts[1:]
    search = again.search()
    assert (search["ended"], search["stages"][1]["reused"], search["notes"]) == ("complete", 1, [])
    for name in RESULT:
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes(), name
    assert not again.out.with_name("out.search").exists()


def test_a_search_that_was_cut_short_goes_on_with_force(compiling):
    cut = compiling("mend", SEARCH_HOLD="1").wait().send(signal.SIGINT)
    assert cut.end()[0] == 0
    cut.log.unlink()
    again = compiling("mend", words=("--force",))
    code, shown, _ = again.end()
    assert code == 0
    assert "1 part of an earlier search reused" in shown
    assert again.search()["ended"] == "complete"
    assert not again.out.with_name("out.search").exists()


def test_what_belongs_to_another_search_or_is_damaged_is_not_used(compiling):
    cut = compiling("mend", SEARCH_HOLD="1").wait().send(signal.SIGINT)
    assert cut.end()[0] == 0
    cut.log.unlink()
    for path in cut.out.with_name("out.search").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:-40])
    other = compiling("mend", words=("--force", "--seed", "5"), SEARCH_HOLD="0").wait().send(signal.SIGINT)
    assert other.end()[0] == 0
    assert other.search()["notes"][0].startswith("saved parts of another search are not used")
    again = compiling("mend", words=("--force",))
    assert again.end()[0] == 0
    search = again.search()
    assert search["stages"][1]["reused"] == 0
    assert "is unreadable" in search["notes"][0]
