"""Budgets and checkpoints: when a search must end, and what is found again of one that was stopped."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qcompiler import budget as budgets
from qcompiler.budget import NO_CHECKPOINT, Budget, Checkpoint, resident_bytes
from qcompiler.model.child import new_process, stop_child


@pytest.fixture
def clock(monkeypatch):
    """Give a clock that stands still; a test adds seconds to it."""
    now = [100.0]
    monkeypatch.setattr(budgets.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def resident(monkeypatch):
    held = [1000]
    monkeypatch.setattr(budgets, "resident_bytes", lambda: held[0])
    return held


def test_without_limits_a_search_runs_to_its_end(clock):
    budget = Budget()
    clock[0] += 1e9
    assert (budget.spent(), budget.left_s(), budget.allows(10**15), budget.limited) == (False, math.inf, True, False)


def test_time_runs_out(clock):
    budget = Budget(seconds=10)
    clock[0] += 4
    assert (budget.left_s(), budget.cause(), budget.limited) == (6, "", True)
    clock[0] += 6
    assert (budget.left_s(), budget.cause(), budget.spent()) == (0, "time", True)


def test_time_to_write_and_verify_is_kept_back(clock):
    budget = Budget(seconds=10)
    budget.keep_back(3)
    assert budget.left_s() == 7
    clock[0] += 7
    assert budget.cause() == "time"


def test_memory_is_what_is_held_and_what_is_estimated(resident):
    budget = Budget(memory_bytes=1500)
    assert budget.allows(500)
    assert not budget.allows(501)
    assert budget.cause() == ""
    resident[0] = 1501
    assert budget.cause() == "memory"
    resident[0] = 1000
    assert budget.cause() == "memory"


def test_a_system_that_does_not_tell_leaves_the_estimate(resident):
    resident[0] = None
    assert Budget(memory_bytes=10).allows(10)
    assert not Budget(memory_bytes=10).allows(11)


def test_the_memory_of_this_process_is_known():
    before = resident_bytes()
    block = np.ones(50_000_000, np.uint8)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before > block.nbytes // 2


def test_shares_split_the_time_that_is_left_and_stop_together(clock):
    whole = Budget(seconds=12, memory_bytes=10**15)
    first = whole.share(3)
    assert (first.left_s(), first.memory_bytes) == (4, 10**15)
    clock[0] += 2
    assert whole.share(2).left_s() == 5
    first.stop()
    assert whole.stopping
    assert whole.share(1).cause() == "interrupted"
    assert Budget().share(2).left_s() == math.inf


# -- checkpoints -------------------------------------------------------------------------------------

ARRAYS = {"codes": np.arange(6, dtype=np.int8).reshape(2, 3), "scale": np.float32([0.5])}


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        found[k].dtype == v.dtype and np.array_equal(found[k], v) for k, v in expected.items()
    )


def checkpoint(folder: Path, fingerprint: str = "model") -> Checkpoint:
    return Checkpoint(folder / "out.search", lambda: fingerprint)


def test_what_was_saved_is_found_by_the_next_search(tmp_path):
    first = checkpoint(tmp_path).of("mend", lambda: "plan")
    assert first.load("layer/1") is None
    first.save("layer/1", ARRAYS)
    again = checkpoint(tmp_path)
    part = again.of("mend", lambda: "plan")
    assert same(part.load("layer/1"), ARRAYS)
    assert part.load("layer/2") is None
    assert (again.log.reused, again.log.notes) == (1, [])
    part.save("layer/1", {"scale": ARRAYS["scale"]})
    assert same(part.load("layer/1"), {"scale": ARRAYS["scale"]})


@pytest.mark.parametrize(
    ("model", "name", "plan", "note"),
    [
        ("other", "mend", "plan", ["saved parts of another search are not used: model, recipe, data"]),
        ("model", "mend", "other", ["saved parts of 'mend' on another plan are not used"]),
        ("model", "find", "plan", []),
    ],
)
def test_another_search_is_not_mistaken_for_this_one(tmp_path, model, name, plan, note):
    checkpoint(tmp_path).of("mend", lambda: "plan").save("a", ARRAYS)
    other = checkpoint(tmp_path, model)
    assert other.of(name, lambda: plan).load("a") is None
    assert other.log.reused == 0
    assert [n[: len(m)] for n, m in zip(other.log.notes, note, strict=True)] == note


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"\x00\x01\x02\x03\x04\x05", b"\x00\x01\x02\x03\x04\x06"),
        lambda content: b"not an archive at all" * 20,
    ],
)
def test_a_damaged_part_is_not_there(tmp_path, damage):
    checkpoint(tmp_path).save("a", ARRAYS)
    (path,) = tmp_path.rglob("*.npz")
    content = damage(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    again = checkpoint(tmp_path)
    assert again.load("a") is None
    assert again.log.reused == 0
    assert "is unreadable" in again.log.notes[0]
    again.save("a", ARRAYS)
    assert same(checkpoint(tmp_path).load("a"), ARRAYS)


def test_a_part_under_a_wrong_name_is_not_used(tmp_path):
    found = checkpoint(tmp_path)
    found.save("a", ARRAYS)
    found.save("b", {"scale": ARRAYS["scale"]})
    first, second = sorted(tmp_path.rglob("*.npz"))
    first.write_bytes(second.read_bytes())
    loaded = [found.load(key) for key in "ab"]
    assert sum(part is None for part in loaded) == 1
    assert "another key" in found.log.notes[0]


def test_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        checkpoint(tmp_path).save("a", {"a": np.asarray([{}])})


def test_a_file_system_that_refuses_costs_only_the_checkpoint(tmp_path):
    (tmp_path / "out.search").write_text("a file where the folder should be")
    found = checkpoint(tmp_path)
    found.save("a", ARRAYS)
    assert "could not be kept" in found.log.notes[0]
    assert found.load("a") is None


def test_what_others_put_there_is_not_removed(tmp_path):
    found = checkpoint(tmp_path)
    found.save("a", ARRAYS)
    checkpoint(tmp_path, "other").save("a", ARRAYS)
    own = tmp_path / "out.search" / "notes.txt"
    own.write_text("mine")
    found.remove()
    assert list((tmp_path / "out.search").iterdir()) == [own]
    own.unlink()
    found.save("a", ARRAYS)
    found.remove()
    assert not (tmp_path / "out.search").exists()
    found.remove()


def test_nothing_is_kept_without_a_folder():
    part = NO_CHECKPOINT.of("mend", lambda: pytest.fail("not needed"))
    part.save("a", ARRAYS)
    assert part.load("a") is None
    part.remove()


@pytest.mark.skipif(os.name != "posix", reason="process groups are a matter of POSIX")
def test_children_do_not_hear_the_terminal(tmp_path):
    script = tmp_path / "child.py"
    script.write_text("import os; print(os.getpgrp() == os.getpid())")
    child = new_process(script, "")
    assert child.communicate()[0].strip() == "True"
    stop_child(child)
    plain = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == "False"
