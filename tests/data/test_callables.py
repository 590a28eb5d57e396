"""Samples from module:callable."""

import sys

import numpy as np
import pytest

from qcompiler.data import InputSpec, open_dataset
from qcompiler.errors import DataError
from qcompiler.recipe import ImagePreprocessing

X = InputSpec("x", np.dtype(np.float32), ("N", 2))
SOURCE = """
import numpy as np

def array():
    return np.arange(6, dtype=np.float32).reshape(3, 2)

def arrays():
    return {"x": array()}

def generator():
    for i in range(3):
        yield {"x": array()[i]}

def batches():
    return [array()[:2], array()[2:]]

def fails():
    raise RuntimeError("no\\nsuch disk")

def nothing():
    return []

def odd():
    return [object()]

number = 3
"""


@pytest.fixture
def loader(tmp_path, monkeypatch):
    """A module of data loaders in the current directory; gives its name."""
    name = f"loader_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["array", "arrays", "generator", "batches"])
def test_every_form_gives_the_same_samples(loader, function):
    before = list(sys.path)
    dataset = open_dataset(f"{loader}:{function}", [X], ImagePreprocessing())
    assert sys.path == before
    assert len(dataset) == 3
    np.testing.assert_array_equal(dataset[2]["x"], [[4, 5]])
    assert dataset.fingerprint == open_dataset(f"{loader}:{function}", [X], ImagePreprocessing()).fingerprint


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "raised RuntimeError: no such disk"),
        ("nothing", "gave no samples"),
        ("odd", "item 0 of .* is no plain array"),
        ("number", "is a int, not a function"),
        ("missing", "AttributeError"),
    ],
)
def test_failures_are_one_line(loader, function, message):
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(f"{loader}:{function}", [X], ImagePreprocessing())
    assert "\n" not in str(caught.value)


def test_missing_module():
    with pytest.raises(DataError, match="No module named 'no_such_module_here'"):
        open_dataset("no_such_module_here:f", [X], ImagePreprocessing())
