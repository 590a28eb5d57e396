"""The output folder appears whole or not at all, and never takes anything with it that is not ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qcompiler.errors import OutputError
from qcompiler.model.save import OutputFolder


def result(folder: Path, text: str = "old") -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def fill(output: OutputFolder, text: str = "new") -> None:
    (output.path / "report.json").write_text(text)


def test_commit(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with OutputFolder(target) as output:
        assert output.path.parent == target.parent
        fill(output)
        assert not target.exists()
        assert output.commit() == target
        assert output.path == target
    assert names(target.parent) == ["out"]
    assert (target / "report.json").read_text() == "new"


def test_without_commit_nothing_is_left(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as output:
        fill(output)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exception_leaves_the_previous_result(tmp_path: Path, error: type[BaseException]) -> None:
    result(tmp_path / "out")

    def interrupted() -> None:
        with OutputFolder(tmp_path / "out", force=True) as output:
            fill(output)
            raise error

    with pytest.raises(error):
        interrupted()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "report.json").read_text() == "old"


def test_force_replaces_a_result(tmp_path: Path) -> None:
    (result(tmp_path / "out") / "stale").touch()
    with OutputFolder(tmp_path / "out", force=True) as output:
        fill(output)
        output.commit()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["report.json"]
    assert (tmp_path / "out" / "report.json").read_text() == "new"


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: result(p / "arm")])
def test_force_replaces_empty_folders_and_results_of_several_targets(tmp_path: Path, make: object) -> None:
    make(tmp_path / "out")  # type: ignore[operator]
    with OutputFolder(tmp_path / "out", force=True) as output:
        fill(output)
        output.commit()
    assert names(tmp_path / "out") == ["report.json"]


def test_reject_keeps_the_previous_result_and_replaces_the_older_failure(tmp_path: Path) -> None:
    result(tmp_path / "out")
    result(tmp_path / "out.failed", "older failure")
    with OutputFolder(tmp_path / "out", force=True) as output:
        fill(output, "failure")
        assert output.reject() == tmp_path / "out.failed"
    assert names(tmp_path) == ["out", "out.failed"]
    assert (tmp_path / "out" / "report.json").read_text() == "old"
    assert (tmp_path / "out.failed" / "report.json").read_text() == "failure"


def test_existing_result_needs_force(tmp_path: Path) -> None:
    result(tmp_path / "out")
    with pytest.raises(OutputError, match="--force"):
        OutputFolder(tmp_path / "out")


@pytest.mark.parametrize("name", ["out", "out.failed"])
def test_folders_of_others_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").touch()
    with pytest.raises(OutputError, match="is not a qcompile result"):
        OutputFolder(tmp_path / "out", force=True)


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="is a file"):
        OutputFolder(tmp_path / "out", force=True)
    with pytest.raises(OutputError, match="cannot be written"), OutputFolder(tmp_path / "out" / "below"):
        pass


def test_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    result(tmp_path / "real")
    (tmp_path / "out").symlink_to("real")
    with OutputFolder(tmp_path / "out", force=True) as output:
        fill(output)
        output.commit()
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "report.json").read_text() == "new"


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)) as caught,
        OutputFolder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), OutputFolder(tmp_path / "out"):
        (tmp_path / "missing").read_text()


def test_failed_rename_puts_the_previous_result_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result(tmp_path / "out")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EXDEV, "cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)

    def replace() -> None:
        with OutputFolder(tmp_path / "out", force=True) as output:
            fill(output)
            output.commit()

    with pytest.raises(OutputError, match="cross-device"):
        replace()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "report.json").read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_unwritable_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), OutputFolder(tmp_path / "out"):
        pass
