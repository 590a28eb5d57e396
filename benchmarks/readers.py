"""Readers of the benchmark data: image folders, packed JPEG archives, digits, spectrograms, speech and text.

Each reader returns arrays with the samples along the first axis, preprocessed the way the model was trained.
Which rows calibrate and which rows score is decided in ``models.py``, not here.
"""

from __future__ import annotations

import csv
import gzip
import io
import wave
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Array]

_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_MAX_TOKENS = 128


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays by name to an .npz file, uncompressed."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a flag of its own for an array


def torch_pixels(pixels: Array) -> Array:
    """Normalize uint8 RGB pixels, channels last, by the ImageNet mean and deviation of torchvision."""
    return (pixels.astype(np.float32) / 255 - _IMAGENET_MEAN) / _IMAGENET_STD


def unit_pixels(pixels: Array) -> Array:
    """Map uint8 pixels to -1..1, float32."""
    return pixels.astype(np.float32) / 127.5 - 1


def channels_first(pixels: Array) -> Array:
    """Turn (N, H, W, C) into a contiguous (N, C, H, W)."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def imagenet_pixels(root: Path, rows: range, size: tuple[int, int] = (224, 224)) -> Array:
    """Return the sample images as uint8 RGB.

    Args:
        root: the data folder.
        rows: which images to read.
        size: width and height, as Pillow orders them; other than the stored 224x224 means bilinear resizing.

    Returns:
        uint8, shape (len(rows), height, width, 3).
    """
    images = []
    for row in rows:
        image = Image.open(root / "imagenet" / "images" / f"{row:03d}.jpg").convert("RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        images.append(np.asarray(image))
    return np.stack(images)


def imagenet_labels(root: Path, rows: range) -> Array:
    """Return the class indices of the sample images, int64."""
    with (root / "imagenet" / "labels.csv").open(newline="", encoding="utf-8") as file:
        indices = [int(row["class_index"]) for row in csv.DictReader(file)]
    return np.array(indices, dtype=np.int64)[rows.start : rows.stop]


def cifar10(path: Path) -> tuple[Array, Array]:
    """Return the images of a packed CIFAR-10 archive, uint8 RGB (N, 32, 32, 3), and labels int64 (N,)."""
    with np.load(path) as archive:
        packed, offsets, labels = archive["buf"].tobytes(), archive["off"].tolist(), archive["y"]
    files = [packed[start:stop] for start, stop in pairwise(offsets)]
    pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return np.stack(pixels), labels.astype(np.int64)


def mnist(path: Path) -> tuple[Array, Array]:
    """Return digits float32 (N, 1, 28, 28) in 0..255, and labels int64 (N,)."""
    with np.load(path) as archive:
        return archive["x"].astype(np.float32)[:, None], archive["y"].astype(np.int64)


def keyword_spectrograms(path: Path) -> tuple[Array, Array]:
    """Return MFCC spectrograms float32 (N, 49, 10, 1), dequantized, and labels int64 (N,)."""
    with np.load(path) as archive:
        values = archive["x_int8"].astype(np.float32) - np.float32(archive["zero_point"])
        return values * np.float32(archive["scale"]), archive["y"].astype(np.int64)


def scikit_digits() -> tuple[Array, Array]:
    """Return the 8x8 digits that scikit-learn ships: float32 (1797, 1, 8, 8) in 0..1, and labels int64."""
    from sklearn.datasets import load_digits  # here, because no other reader needs scikit-learn

    digits = load_digits()
    return (digits.images / 16).astype(np.float32)[:, None], digits.target.astype(np.int64)


def speech(path: Path) -> Array:
    """Return 16-bit mono speech as float32 in -1..1."""
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return samples.astype(np.float32) / 32768


def sentence_pairs(path: Path) -> tuple[list[str], list[str], Array]:
    """Return first sentences, second sentences and the gold similarity of each pair (float64, 0..5)."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [row[2] for row in rows], [row[3] for row in rows], np.array([float(row[1]) for row in rows])


def gzip_lines(path: Path, limit: int) -> list[str]:
    """Return the first ``limit`` lines of a gzipped UTF-8 text."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in islice(file, limit)]


def tokenize(tokenizer: Path, sentences: Iterable[str]) -> list[list[int]]:
    """Return the token identifiers of each sentence, cut at 128 tokens and not padded."""
    from tokenizers import Tokenizer  # here, because no other reader needs tokenizers

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_truncation(max_length=_MAX_TOKENS)
    encoder.no_padding()  # the file itself asks for padding to 128
    return [list(encoding.ids) for encoding in encoder.encode_batch(list(sentences))]
