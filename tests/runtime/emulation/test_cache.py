"""A cached folder is complete or absent: broken ones are built again, two builders do not meet, failures leave none."""

import threading
import time

import pytest

from qcompiler.errors import OutputError, RuntimeUnavailable
from qcompiler.runtime.emulation.cache import MANIFEST, cache_folder, cached, is_complete


class Builder:
    """Writes two files, and counts how often."""

    def __init__(self, delay=0.0):
        self.built = 0
        self.delay = delay

    def __call__(self, folder):
        self.built += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text(f"built {self.built}")
        time.sleep(self.delay)
        (folder / "b").write_bytes(b"12345")
        (folder / "link").symlink_to("sub")


def test_it_is_built_once(tmp_path):
    builder = Builder()
    place = tmp_path / "deep" / "place"
    assert cached(place, builder) == place
    assert cached(place, builder) == place
    assert builder.built == 1
    assert (place / "link" / "a").read_text() == "built 1"


def remove_file(place):
    (place / "b").unlink()


def cut_file(place):
    (place / "b").write_bytes(b"123")


def remove_manifest(place):
    (place / MANIFEST).unlink()


def cut_manifest(place):
    (place / MANIFEST).write_text('{"b": 5')


def change_manifest(place):
    (place / MANIFEST).write_text("[]")


@pytest.mark.parametrize("damage", [remove_file, cut_file, remove_manifest, cut_manifest, change_manifest])
def test_a_damaged_folder_is_built_again(damage, tmp_path):
    builder, place = Builder(), tmp_path / "place"
    cached(place, builder)
    damage(place)
    assert not is_complete(place)
    cached(place, builder)
    assert builder.built == 2
    assert (place / "b").read_bytes() == b"12345"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["place", "place.lock"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeUnavailable("no network")

    place = tmp_path / "place"
    with pytest.raises(RuntimeUnavailable, match="no network"):
        cached(place, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["place.lock"]
    cached(place, Builder())
    assert is_complete(place)


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".place-killed" / "new").mkdir(parents=True)
    (tmp_path / ".other-kept").mkdir()
    cached(tmp_path / "place", Builder())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other-kept", "place", "place.lock"]


def test_two_at_once_build_one(tmp_path):
    builder, place, found = Builder(delay=0.2), tmp_path / "place", []
    threads = [threading.Thread(target=lambda: found.append(cached(place, builder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [place] * 4
    assert builder.built == 1


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*set XDG_CACHE_HOME") as caught:
        cached(tmp_path / "file" / "place", Builder())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "expected"), [("/c", "/c/qcompiler"), ("", "/h/.cache/qcompiler"), ("c", None)])
def test_where_it_is(given, expected, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", "/h")
    assert str(cache_folder()) == (expected or "/h/.cache/qcompiler")
