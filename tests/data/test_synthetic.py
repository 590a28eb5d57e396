"""Generated inputs."""

import numpy as np
import pytest

from qcompiler.data import InputSpec, synthetic_inputs


def spec(name, dtype, *dims):
    return InputSpec(name, np.dtype(dtype), dims)


def test_tokens_masks_and_types_share_their_sizes():
    dims = ("batch", "length")
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    feeds = synthetic_inputs([spec(name, np.int64, *dims) for name in names], 3, 0)[1]
    assert {values.shape for values in feeds.values()} == {(1, 16)}
    assert feeds["input_ids"].min() >= 0
    assert len(set(feeds["input_ids"].ravel())) > 1
    assert set(feeds["attention_mask"].ravel()) == {1}
    assert set(feeds["token_type_ids"].ravel()) == {0}
    np.testing.assert_array_equal(feeds["position_ids"][0], np.arange(16))


def test_batch_symbol_is_one_on_every_axis_and_sums_add_up():
    inputs = [
        spec("x", np.float32, "n_rows", 3, None, None),
        spec("state", np.float32, 2, "n_rows", 8),
        spec("past", np.float32, "n_rows", 2, "past", 8),
        spec("attention_mask", np.int64, "n_rows", "past + 1"),
    ]
    feeds = synthetic_inputs(inputs, 1, 0)[0]
    assert feeds["x"].shape == (1, 3, 64, 64)
    assert feeds["state"].shape == (2, 1, 8)
    assert feeds["attention_mask"].shape == (1, feeds["past"].shape[2] + 1)


@pytest.mark.parametrize(
    "dtype",
    [
        np.float16,
        np.float32,
        np.float64,
        np.int8,
        np.uint8,
        np.int32,
        np.int64,
        np.bool_,
        np.complex64,
        object,
    ],
)
@pytest.mark.parametrize("dims", [(), (5,), (1, 3, 8, 8)])
def test_every_dtype_and_rank(dtype, dims):
    values = synthetic_inputs([spec("x", dtype, *dims)], 2, 0)[0]["x"]
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.dtype(dtype)
    assert values.shape == dims


def test_floats_are_standard_normal():
    values = synthetic_inputs([spec("x", np.float32, 1, 3, 64, 64)], 2, 0)[0]["x"]
    # 12288 draws: six standard errors of the mean, and of the variance.
    assert abs(values.mean()) < 6 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 6 * np.sqrt(2 / values.size)


def test_same_seed_same_values_and_each_sample_differs():
    inputs = [spec("x", np.float32, 1, 4)]
    first, again, other = (synthetic_inputs(inputs, 2, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[1]["x"], again[1]["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])
    assert not np.array_equal(first[0]["x"], other[0]["x"])
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_source_says_so():
    assert "synthetic" in synthetic_inputs([spec("x", np.float32, 1)], 4, 0).source


def test_recurrent_state_has_its_batch_in_the_middle():
    assert synthetic_inputs([spec("state", np.float32, 2, None, 8)], 1, 0)[0]["state"].shape == (2, 1, 8)


def test_rows_of_floats_are_long_enough_for_filters():
    feeds = synthetic_inputs([spec("x", np.float32, None, None), spec("y", np.float32, None, "t", 8)], 1, 0)[0]
    assert feeds["x"].shape == (1, 256)
    assert feeds["y"].shape == (1, 16, 8)
