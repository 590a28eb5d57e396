"""Samples from folders of images."""

import numpy as np
import pytest
from PIL import Image

from qcompiler.data import InputSpec, load_labels, open_dataset
from qcompiler.errors import DataError, UsageError
from qcompiler.recipe import ImagePreprocessing


def spec(*dims, dtype=np.float32):
    return InputSpec("image", np.dtype(dtype), dims)


@pytest.fixture
def folder(tmp_path):
    """Three images of one color each, 8 wide and 6 high, in an order that is not the file system's."""
    for name, color in (("b.png", (0, 255, 0)), ("a.png", (255, 0, 0)), ("c.png", (0, 0, 255))):
        Image.new("RGB", (8, 6), color).save(tmp_path / name)
    return tmp_path


def test_sorted_and_laid_out(folder):
    dataset = open_dataset(str(folder), [spec("N", 3, 6, 8)], ImagePreprocessing())
    assert dataset.row_names == ("a.png", "b.png", "c.png")
    image = dataset[0]["image"]
    assert (image.shape, image.dtype) == ((1, 3, 6, 8), np.float32)
    np.testing.assert_array_equal(image[0, :, 0, 0], [1, 0, 0])


def test_every_step_of_the_preprocessing(folder):
    declared = ImagePreprocessing(
        size=(2, 2), layout="NHWC", channels="BGR", range=(0, 255), mean=(5, 0, 0), std=(1, 1, 10)
    )
    dataset = open_dataset(str(folder), [spec(1, None, None, 3)], declared)
    np.testing.assert_allclose(dataset[0]["image"][0, 0, 0], [-5, 0, 25.5])
    assert dataset.preprocessing == ("BGR, resized to 2x2 (bilinear), 0..255 to 0..255, mean 5/0/0, std 1/1/10, NHWC")


def test_resize_and_center_crop(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dataset = open_dataset(str(tmp_path), [spec(1, 3, 10, 10)], ImagePreprocessing(resize=10))
    np.testing.assert_array_equal(dataset[0]["image"], np.ones((1, 3, 10, 10), np.float32))


def test_gray_and_integers(folder):
    declared = ImagePreprocessing(channels="GRAY", range=(0, 255))
    image = open_dataset(str(folder), [spec(1, 1, 6, 8, dtype=np.uint8)], declared)[0]["image"]
    assert image.dtype == np.uint8
    assert image.shape == (1, 1, 6, 8)
    assert set(image.ravel()) == {76}


def test_fixed_batch(folder):
    dataset = open_dataset(str(folder), [spec(2, 3, 6, 8)], ImagePreprocessing())
    assert len(dataset) == 1
    assert dataset[0]["image"].shape == (2, 3, 6, 8)
    assert "fill no batch of 2" in dataset.notes[-1]


@pytest.mark.parametrize(
    ("dims", "declared", "message"),
    [
        ((1, 1, 6, 8), {}, "set channels or layout"),
        ((1, 3, None, None), {}, r"set size = \[height, width\]"),
        ((1, 3, 6, 8), {"size": (4, 4)}, r"\[image\] size is 4x4"),
        ((1, 3, 6, 8), {"resize": 4}, "smaller than the crop"),
        ((1, 3, 6, 8), {"mean": (0, 0)}, "must have 1 or 3 values"),
    ],
)
def test_preprocessing_that_does_not_fit(folder, dims, declared, message):
    with pytest.raises(UsageError, match=message):
        open_dataset(str(folder), [spec(*dims)], ImagePreprocessing(**declared))


def test_models_that_take_no_single_image(folder):
    with pytest.raises(DataError, match="give arrays named as the inputs"):
        open_dataset(str(folder), [spec("N", 10)], ImagePreprocessing())


def test_undecodable_file(folder):
    (folder / "a.png").write_bytes(b"not an image")
    dataset = open_dataset(str(folder), [spec("N", 3, 6, 8)], ImagePreprocessing())
    with pytest.raises(DataError, match=r"cannot decode .*a\.png"):
        dataset[0]


def test_fingerprint_follows_content(folder):
    def fingerprint():
        return open_dataset(str(folder), [spec("N", 3, 6, 8)], ImagePreprocessing()).fingerprint

    before = fingerprint()
    assert before == fingerprint()
    Image.new("RGB", (8, 6), (1, 2, 3)).save(folder / "a.png")
    assert before != fingerprint()


def test_labels_by_file_name(folder):
    dataset = open_dataset(str(folder), [spec("N", 3, 6, 8)], ImagePreprocessing())
    (folder / "labels.csv").write_text("file,class_index,word\nc.png,7,x\na.png,5,y\nb.png,6,z\nd.png,1,w\n")
    np.testing.assert_array_equal(load_labels(folder / "labels.csv", dataset), [5, 6, 7])
    (folder / "labels.csv").write_text("c.png,7\na.png,5\n")
    with pytest.raises(DataError, match=r"has no label for b\.png"):
        load_labels(folder / "labels.csv", dataset)


def test_values_do_not_depend_on_what_is_kept_in_memory(folder, monkeypatch):
    dataset = open_dataset(str(folder), [spec("N", 3, 6, 8)], ImagePreprocessing(channels="BGR"))
    first = dataset[0]["image"].copy()
    np.testing.assert_array_equal(dataset[0]["image"], first)
    monkeypatch.setattr("qcompiler.data.images.CACHE_BYTES", 0)
    other = open_dataset(str(folder), [spec("N", 3, 6, 8)], ImagePreprocessing(channels="BGR"))
    np.testing.assert_array_equal(other[0]["image"], first)
    np.testing.assert_array_equal(other[0]["image"], first)
