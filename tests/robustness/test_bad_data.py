"""Data and labels that do not fit the model: each ends in one line, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.robustness.conftest import Command

WIDTH = 64
RNG = np.random.default_rng(0)
GOOD = RNG.standard_normal((12, WIDTH)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier ``x`` (N, 64) float32 -> ``y`` (N, 4)."""
    return models.save(models.dense_net(width=WIDTH), tmp_path)


def spoiled(change: Callable[[models.Array], None]) -> models.Array:
    array = GOOD.copy()
    change(array)
    return array


def set_nan(array: models.Array) -> None:
    array[3, 5] = np.nan


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": GOOD, "b": GOOD}, ("no array for input 'x'", "it holds 'a', 'b'", "Name the arrays")),
        ({"x": GOOD[:, :10]}, ("have the sizes [10]", "float32 (N, 64)", "preprocess the data")),
        ({"x": GOOD.reshape(12, 8, 2, 4)}, ("has 4 axes", "store the samples along the first axis")),
        ({"x": GOOD.astype(str)}, ("in the data, the model takes float32", "save the array as float32")),
        ({"x": GOOD[:0]}, ("has 0 rows", "give at least 1")),
        ({"x": GOOD[:2]}, ("holds 2 samples", "at least 3 are needed")),
        ({"x": spoiled(set_nan)}, ("NaN or infinite values", "remove or replace")),
    ],
)
def test_arrays(
    command: Command, model: Path, tmp_path: Path, arrays: dict[str, models.Array], words: tuple[str, ...]
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **arrays)  # type: ignore[arg-type]
    ended = command(model, "--data", data)
    ended.refused(3, *words)
    assert list(ended.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere.npz", None, ("no data at", "give a .npz or .npy file")),
        ("data.txt", b"1 2 3", ("is not .npz or .npy", "convert it")),
        ("data.npz", b"PK but no archive", ("data.npz",)),
        ("data.npy", b"\x93NUMPY\x01\x00", ("data.npy",)),
    ],
)
def test_files(
    command: Command, model: Path, tmp_path: Path, name: str, content: bytes | None, words: tuple[str, ...]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    command(model, "--data", tmp_path / name).refused(3, *words)


def test_function_that_fails(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "failing_loader.py").write_text("def samples():\n    raise KeyError('no such\\nfile')\n")
    command(model, "--data", "failing_loader:samples").refused(3, "raised KeyError", "mend the function")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(11, np.int64), ("holds 11 labels, the data 12 rows", "one label for every row")),
        (np.zeros(13, np.int64), ("holds 13 labels, the data 12 rows",)),
        (np.full(12, 9), ("label 9 is beyond the classes of every output", "check --labels")),
        (np.full(12, -1), ("holds the label -1", "class indices from 0")),
        (np.zeros(12, np.float32), ("holds float32", "one integer per sample")),
    ],
)
def test_labels(command: Command, model: Path, tmp_path: Path, labels: models.Array, words: tuple[str, ...]) -> None:
    np.save(tmp_path / "x.npy", GOOD)
    np.save(tmp_path / "labels.npy", labels)
    ended = command(model, "--data", tmp_path / "x.npy", "--labels", tmp_path / "labels.npy")
    ended.refused(3, *words)
    assert list(ended.folder.iterdir()) == []


def test_labels_without_data(command: Command, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(12, np.int64))
    command(model, "--labels", tmp_path / "labels.npy").refused(2, "labels without data", "give --data too")


def test_fine_tuning_without_data(command: Command, model: Path) -> None:
    command(model, "--fine-tune", "1").refused(2, "fine-tuning without data", "give --data too")


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0e30, 1e-40])
def test_constant_activations(command: Command, model: Path, tmp_path: Path, value: float) -> None:
    """Every sample alike: the grids are degenerate, the result is verified all the same, and the report says so."""
    np.save(tmp_path / "x.npy", np.full((12, WIDTH), value, np.float32))
    ended = command(model, "--data", tmp_path / "x.npy")
    assert ended.code == 0, ended.err
    assert json.loads((ended.folder / "out" / "report.json").read_text())["verdict"]["loaded"]


def test_sample_that_overflows(command: Command, model: Path, tmp_path: Path) -> None:
    """Finite data that the model turns into infinity."""
    np.save(tmp_path / "x.npy", spoiled(lambda a: a.__setitem__(slice(None), 3e38)))
    ended = command(model, "--data", tmp_path / "x.npy")
    ended.refused(3, "not finite", "leave that sample out")
    assert list(ended.folder.iterdir()) == []
