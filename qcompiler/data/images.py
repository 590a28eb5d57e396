"""A folder of image files as input of a model with one image input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.arrays import file_digest
from qcompiler.data.dataset import Feeds, InputSpec
from qcompiler.errors import DataError, UsageError
from qcompiler.recipe import ImagePreprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

CACHE_BYTES = 64 * 2**20
"""Decoded pixels kept in memory: calibration goes over its samples many times, and decoding dominates."""


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images in sorted order, decoded and preprocessed when they are read.

    Attributes:
        folder: where they lie.
        paths: the image files.
        spec: the model's input.
        image: the preprocessing, ``size`` resolved.
        notes: what was left out.
    """

    folder: Path
    paths: tuple[Path, ...]
    spec: InputSpec
    image: ImagePreprocessing
    notes: tuple[str, ...]
    _decoded: dict[Path, NDArray[np.uint8]] = field(default_factory=dict, init=False, repr=False)

    @property
    def source(self) -> str:
        """The folder and how many images it holds."""
        return f"{self.folder} ({len(self.paths)} images)"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and bytes of all files, in order."""
        digest = hashlib.sha256()
        for name, path in zip(self.row_names, self.paths, strict=False):
            digest.update(name.encode() + b"\0" + file_digest(path))
        return digest.hexdigest()

    @property
    def preprocessing(self) -> str:
        """The steps, in order."""
        image, (height, width) = self.image, self._size
        resize = f"shorter side to {image.resize}, center crop" if image.resize else "resized to"
        return (
            f"{image.channels}, {resize} {height}x{width} (bilinear), "
            f"0..255 to {image.range[0]:g}..{image.range[1]:g}, mean {_numbers(image.mean)}, "
            f"std {_numbers(image.std)}, {image.layout}"
        )

    @property
    def rows_per_sample(self) -> int:
        """The model's batch."""
        return self.spec.batch

    @cached_property
    def row_names(self) -> tuple[str, ...]:
        """Paths of the images in the folder, with forward slashes."""
        used = self.paths[: len(self) * self.rows_per_sample]
        return tuple(path.relative_to(self.folder).as_posix() for path in used)

    @property
    def _size(self) -> tuple[int, int]:
        return self.image.size or (0, 0)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.paths) // self.spec.batch

    def __getitem__(self, index: int, /) -> Feeds:
        """Return the feeds of one sample.

        Raises:
            DataError: a file cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = self.paths[index * self.spec.batch : (index + 1) * self.spec.batch]
        values = np.stack([self._array(path) for path in rows])
        if self.spec.dtype.kind in "iu":
            limits = np.iinfo(self.spec.dtype)
            return {self.spec.name: np.clip(np.rint(values), limits.min, limits.max).astype(self.spec.dtype)}
        return {self.spec.name: values.astype(self.spec.dtype)}

    def _array(self, path: Path) -> NDArray[Any]:
        """Return one image as float32, (C, H, W) or (H, W, C)."""
        image = self.image
        pixels = self._pixels(path).astype(np.float32)
        pixels = pixels[:, :, ::-1] if image.channels == "BGR" else pixels
        low, high = image.range
        values: NDArray[Any] = pixels * np.float32((high - low) / 255) + np.float32(low)
        values = (values - np.asarray(image.mean, np.float32)) / np.asarray(image.std, np.float32)
        return values.transpose(2, 0, 1) if image.layout == "NCHW" else values

    def _pixels(self, path: Path) -> NDArray[np.uint8]:
        """Return one image, resized and cropped, uint8 (H, W, C)."""
        if path not in self._decoded:
            pixels = np.asarray(self._decode(path), dtype=np.uint8)
            pixels = pixels.reshape(*self._size, -1)
            if (len(self._decoded) + 1) * pixels.nbytes > CACHE_BYTES:
                return pixels
            self._decoded[path] = pixels
        return self._decoded[path]

    def _decode(self, path: Path) -> Image:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as file:
                picture = file.convert("L" if self.image.channels == "GRAY" else "RGB")
        except (
            OSError,
            ValueError,
            SyntaxError,
            UnidentifiedImageError,
            Image.DecompressionBombError,
        ) as error:
            raise DataError(f"cannot decode {path}: {' '.join(str(error).split())}; remove or replace it") from error
        height, width = self._size
        if not self.image.resize:
            return picture.resize((width, height), Image.Resampling.BILINEAR)
        scale = self.image.resize / min(picture.size)
        scaled = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))


def open_images(
    folder: Path, paths: Sequence[Path], inputs: Sequence[InputSpec], image: ImagePreprocessing
) -> ImageFolder:
    """Return the images of a folder, preprocessed as declared.

    Raises:
        DataError: the model takes no single image, or pillow is missing.
        UsageError: the declared preprocessing does not fit the model's input.
    """
    import dataclasses
    import importlib.util

    if importlib.util.find_spec("PIL") is None:
        raise DataError(f"{folder} holds images, and pillow is not installed: pip install 'qcompiler[images]'")
    if len(inputs) != 1 or len(inputs[0].dims) != 4:
        listed = ", ".join(f"{spec.name!r} {spec}" for spec in inputs)
        raise DataError(f"{folder} holds images, the model takes {listed}; give arrays named as the inputs (.npz)")
    spec = inputs[0]
    image = dataclasses.replace(image, size=_resolve_size(spec, image))
    dropped = len(paths) % max(1, spec.batch)
    notes = (f"the last {dropped} images fill no batch of {spec.batch}",) if dropped else ()
    if len(paths) < spec.batch:
        raise DataError(f"{folder} holds {len(paths)} images; the model fixes its batch to {spec.batch}")
    return ImageFolder(folder, tuple(paths), spec, image, notes)


def _resolve_size(spec: InputSpec, image: ImagePreprocessing) -> tuple[int, int]:
    """Return (height, width), checked against the model's sizes and channels."""
    channels = 1 if image.channels == "GRAY" else 3
    axes = spec.dims[1:] if image.layout == "NCHW" else (spec.dims[3], *spec.dims[1:3])
    if isinstance(axes[0], int) and axes[0] != channels:
        raise UsageError(
            f"images are {image.channels} in {image.layout} ({channels} channels), input {spec.name!r} takes "
            f"{spec}; set channels or layout in [image]"
        )
    size = image.size or tuple(axes[1:])
    if any(not isinstance(length, int) for length in size):
        raise UsageError(f"input {spec.name!r} takes {spec}, of any size; set size = [height, width] in [image]")
    height, width = (int(length) for length in size if isinstance(length, int))
    for length, wanted in zip((height, width), axes[1:], strict=True):
        if isinstance(wanted, int) and wanted != length:
            raise UsageError(f"[image] size is {height}x{width}, input {spec.name!r} takes {spec}; remove size")
    if 0 < image.resize < max(height, width):
        raise UsageError(f"[image] resize = {image.resize} is smaller than the crop of {height}x{width}")
    if any(len(values) not in (1, channels) for values in (image.mean, image.std)):
        raise UsageError(f"[image] mean and std must have 1 or {channels} values for {image.channels}")
    return height, width


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)
