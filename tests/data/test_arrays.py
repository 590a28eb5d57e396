"""Samples from .npz and .npy files and folders of them."""

from pathlib import Path

import numpy as np
import pytest

from qcompiler.data import InputSpec, Subset, open_dataset
from qcompiler.errors import DataError
from qcompiler.recipe import ImagePreprocessing

IMAGE = ImagePreprocessing()


def spec(name, dtype, *dims):
    return InputSpec(name, np.dtype(dtype), dims)


X = spec("x", np.float32, "N", 3, 4)


def write(path: Path, *, compressed=False, **arrays) -> str:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return str(path)


def values(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_gives_one_sample_with_its_batch_axis(tmp_path, compressed):
    x, ids = values(5), np.arange(10, dtype=np.int64).reshape(5, 2)
    path = write(tmp_path / "a.npz", compressed=compressed, x=x, ids=ids)
    dataset = open_dataset(path, [X, spec("ids", np.int64, None, None)], IMAGE)
    assert len(dataset) == 5
    for i in (4, 0, 2):
        feeds = dataset[i]
        np.testing.assert_array_equal(feeds["x"], x[i : i + 1])
        np.testing.assert_array_equal(feeds["ids"], ids[i : i + 1])
    with pytest.raises(IndexError):
        dataset[5]
    assert dataset.notes == ()


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_feeds_the_only_input(tmp_path, order):
    x = values(5)
    np.save(tmp_path / "a.npy", np.asarray(x, order=order))
    dataset = open_dataset(str(tmp_path / "a.npy"), [X], IMAGE)
    np.testing.assert_array_equal(dataset[3]["x"], x[3:4])


def test_one_array_of_any_name_feeds_one_input_with_a_note(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", images=values(3)), [X], IMAGE)
    assert dataset[0]["x"].shape == (1, 3, 4)
    assert "'images' feeds input 'x'" in dataset.notes[0]


def test_two_unnamed_arrays_are_refused(tmp_path):
    path = write(tmp_path / "a.npz", images=values(3), y=np.arange(3))
    with pytest.raises(DataError, match=r"no array for input 'x'; it holds 'images', 'y'"):
        open_dataset(path, [X], IMAGE)


def test_arrays_that_are_no_input_are_left_out_with_a_note(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", x=values(3), y=np.arange(3)), [X], IMAGE)
    assert set(dataset[0]) == {"x"}
    assert "'y' is no input" in dataset.notes[0]


def test_fixed_batch_takes_that_many_rows_and_notes_the_rest(tmp_path):
    x = values(11)
    dataset = open_dataset(write(tmp_path / "a.npz", x=x), [spec("x", np.float32, 4, 3, 4)], IMAGE)
    assert (len(dataset), dataset.rows_per_sample) == (2, 4)
    np.testing.assert_array_equal(dataset[1]["x"], x[4:8])
    assert "last 3 rows" in dataset.notes[0]


def test_extra_axis_stacks_whole_samples_and_scalars_may_be_constant(tmp_path):
    state = np.arange(5 * 2 * 6, dtype=np.float32).reshape(5, 2, 1, 6)
    path = write(tmp_path / "a.npz", x=values(5), state=state, rate=np.array(16000), step=np.arange(5))
    inputs = [X, spec("state", np.float32, 2, None, 6), spec("rate", np.int64), spec("step", np.int64)]
    feeds = open_dataset(path, inputs, IMAGE)[3]
    np.testing.assert_array_equal(feeds["state"], state[3])
    assert feeds["rate"].shape == feeds["step"].shape == ()
    assert (int(feeds["rate"]), int(feeds["step"])) == (16000, 3)


def test_folder_of_files_with_varying_shapes(tmp_path):
    ids = spec("ids", np.int64, "batch", "length")
    lengths = {"a": 5, "b": 7, "c": 2}
    for name, length in lengths.items():
        np.savez(tmp_path / f"{name}.npz", ids=np.arange(length))
    np.savez(tmp_path / "d.npz", ids=np.arange(8).reshape(2, 4))
    (tmp_path / "notes.txt").write_text("hello")
    dataset = open_dataset(str(tmp_path), [ids], IMAGE)
    assert [dataset[i]["ids"].shape for i in range(len(dataset))] == [(1, 5), (1, 7), (1, 2), (1, 4), (1, 4)]
    np.testing.assert_array_equal(dataset[4]["ids"], [[4, 5, 6, 7]])
    assert any("neither arrays nor images" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.float64, np.float32),
        (np.float32, np.float16),
        (np.int32, np.int64),
        (np.int64, np.int32),
        (np.uint8, np.float32),
        (np.bool_, np.int64),
        (np.int64, np.bool_),
        (">f4", np.float32),
    ],
)
def test_harmless_conversions_are_done_and_noted(tmp_path, found, expected):
    x = np.array([[0, 1], [1, 1], [1, 0]]).astype(found)
    dataset = open_dataset(write(tmp_path / "a.npz", x=x), [spec("x", expected, None, 2)], IMAGE)
    assert dataset[1]["x"].dtype == np.dtype(expected)
    np.testing.assert_array_equal(dataset[1]["x"].astype(float), x[1:2].astype(float))
    assert "converted" in dataset.notes[0]


@pytest.mark.parametrize(
    ("found", "expected"), [(np.float32, np.int64), (np.complex64, np.float32), ("U3", np.float32)]
)
def test_other_conversions_are_refused(tmp_path, found, expected):
    path = write(tmp_path / "a.npz", x=np.zeros((3, 2), found))
    with pytest.raises(DataError, match=r"input 'x' is .* in the data, the model takes .*save the array as"):
        open_dataset(path, [spec("x", expected, None, 2)], IMAGE)


def test_integers_out_of_range_are_refused_when_read(tmp_path):
    path = write(tmp_path / "a.npz", x=np.array([[1], [2**40]]))
    dataset = open_dataset(path, [spec("x", np.int32, None, 1)], IMAGE)
    assert dataset[0]["x"] == 1
    with pytest.raises(DataError, match="1099511627776, which int32 cannot hold"):
        dataset[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, bad):
    x = values(3)
    x[1, 0, 0] = bad
    dataset = open_dataset(write(tmp_path / "a.npz", x=x), [X], IMAGE)
    dataset[0]
    with pytest.raises(DataError, match="input 'x' holds 1 NaN or infinite values"):
        dataset[1]


def test_overflow_of_a_narrower_float_is_refused(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", x=np.array([[1e6]])), [spec("x", np.float16, None, 1)], IMAGE)
    with pytest.raises(DataError, match="too large for float16"):
        dataset[0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3, 5), np.float32), r"sizes \[3, 5\], the model takes float32 \(N, 3, 4\)"),
        (np.zeros((5, 3), np.float32), r"sizes \[5, 3\]"),
        (np.zeros(5, np.float32), r"has 1 axes \[5\]"),
        (np.zeros((2, 5, 1, 3, 4), np.float32), "has 5 axes"),
        (np.zeros((0, 3, 4), np.float32), "has 0 rows"),
    ],
)
def test_wrong_shapes_are_refused(tmp_path, array, message):
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "a.npz", x=array), [X], IMAGE)


def test_unequal_sample_counts_are_refused(tmp_path):
    path = write(tmp_path / "a.npz", x=values(3), ids=np.zeros((4, 2), np.int64))
    with pytest.raises(DataError, match=r"different numbers of samples \('x' 3, 'ids' 4\)"):
        open_dataset(path, [X, spec("ids", np.int64, None, 2)], IMAGE)


def test_pickles_are_never_read(tmp_path):
    path = write(tmp_path / "a.npz", x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match="pickles are never read"):
        open_dataset(path, [X], IMAGE)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_files_that_are_no_arrays_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"not an array")
    with pytest.raises(DataError, match="cannot read"):
        open_dataset(str(path), [X], IMAGE)


def test_truncated_file_is_refused_before_anything_is_allocated(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, values(5))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="is truncated"):
        open_dataset(str(path), [X], IMAGE)


def test_damaged_compressed_member_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    write(path, compressed=True, x=values(500))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|cannot read"):
        open_dataset(str(path), [X], IMAGE)[0]


@pytest.mark.parametrize("name", ["missing.npz", "empty", "a.txt", "mixed"])
def test_places_without_data_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "mixed").mkdir()
    np.save(tmp_path / "mixed" / "a.npy", values(1))
    (tmp_path / "mixed" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no data at|holds no|is not \.npz|keep one kind"):
        open_dataset(str(tmp_path / name), [X], IMAGE)


def test_strings(tmp_path):
    path = write(tmp_path / "a.npz", text=np.array([["a"], ["bc"]]))
    feeds = open_dataset(path, [spec("text", object, None, 1)], IMAGE)[1]
    assert feeds["text"].dtype == object
    assert feeds["text"].tolist() == [["bc"]]


def test_fingerprint_follows_content_not_place(tmp_path):
    (tmp_path / "other").mkdir()
    first = open_dataset(write(tmp_path / "a.npz", x=values(3)), [X], IMAGE).fingerprint
    same = open_dataset(write(tmp_path / "other" / "b.npz", x=values(3)), [X], IMAGE).fingerprint
    different = open_dataset(write(tmp_path / "c.npz", x=values(3, seed=1)), [X], IMAGE).fingerprint
    assert first == same != different
    assert len(first) == 64


def test_stored_samples_are_read_alone(tmp_path, monkeypatch):
    """Reading one sample of a large uncompressed file touches that sample's bytes only."""
    path = write(tmp_path / "a.npz", x=values(1000))
    dataset = open_dataset(path, [X], IMAGE)
    counts = []
    original = np.fromfile

    def counted(*args, **kwargs):
        counts.append(kwargs["count"])
        return original(*args, **kwargs)

    monkeypatch.setattr(np, "fromfile", counted)
    dataset[700]
    assert counts == [12]


def test_subset_keeps_order(tmp_path):
    x = values(6)
    dataset = open_dataset(write(tmp_path / "a.npz", x=x), [X], IMAGE)
    subset = Subset(dataset, (4, 1))
    assert len(subset) == 2
    np.testing.assert_array_equal(subset[0]["x"], x[4:5])
    assert subset.fingerprint != dataset.fingerprint
    assert "2 of 6" in subset.source
    with pytest.raises(IndexError):
        subset[2]
