"""Labels in row order, from .npy and CSV."""

import numpy as np
import pytest

from qcompiler.data import InputSpec, load_labels, synthetic_inputs
from qcompiler.errors import DataError

FOUR = synthetic_inputs([InputSpec("x", np.dtype(np.float32), (1, 2))], 4, 0)
PAIRS = synthetic_inputs([InputSpec("x", np.dtype(np.float32), (2, 2))], 2, 0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_npy(tmp_path, dtype):
    np.save(tmp_path / "y.npy", np.array([3, 1, 2, 0], dtype))
    labels = load_labels(tmp_path / "y.npy", FOUR)
    assert labels.dtype == np.int64
    assert labels.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("text", ["file,label\na,3\nb,1\nc,2\nd,0\n", "a,3\nb,1\nc,2\nd,0", "label\n3\n1\n2\n0\n"])
def test_csv_in_row_order(tmp_path, text):
    (tmp_path / "y.csv").write_text(text)
    assert load_labels(tmp_path / "y.csv", FOUR).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("count", [4, 5])
def test_rows_of_a_fixed_batch(tmp_path, count):
    np.save(tmp_path / "y.npy", np.arange(count))
    assert load_labels(tmp_path / "y.npy", PAIRS).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("count", [3, 5])
def test_another_length_is_refused(tmp_path, count):
    np.save(tmp_path / "y.npy", np.arange(count))
    with pytest.raises(DataError, match=f"holds {count} labels, the data 4 rows"):
        load_labels(tmp_path / "y.npy", FOUR)


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((4, 10), np.int64), np.array(["a"] * 4)])
def test_arrays_that_are_no_labels(tmp_path, array):
    np.save(tmp_path / "y.npy", array)
    with pytest.raises(DataError, match="labels are one integer per sample"):
        load_labels(tmp_path / "y.npy", FOUR)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,3\nb,cat\nc,1\nd,1", "row 2 is 'b,cat'"), ("a,-1\nb,1\nc,1\nd,1", "the label -1")],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "y.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_labels(tmp_path / "y.csv", FOUR)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no labels at"):
        load_labels(tmp_path / "y.csv", FOUR)
