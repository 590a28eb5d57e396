"""From the text after ``--data`` to a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from qcompiler.data.arrays import ChunkedDataset, make_chunk
from qcompiler.data.callables import open_callable
from qcompiler.data.dataset import Dataset, InputSpec
from qcompiler.data.images import IMAGE_SUFFIXES, ImageFolder, open_images
from qcompiler.data.npy import open_array_file
from qcompiler.errors import DataError
from qcompiler.recipe import CALLABLE, ImagePreprocessing

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})


def open_dataset(spec: str, inputs: Sequence[InputSpec], image: ImagePreprocessing) -> Dataset:
    """Open the samples that ``spec`` names; values are read when they are asked for.

    Args:
        spec: a .npz file (arrays named as the inputs), a .npy file (models with one input), a folder of such
            files, a folder of images, or ``module:callable``.
        inputs: the model's inputs.
        image: how images become arrays.

    Raises:
        DataError: there is no such data, or it does not fit the inputs.
        UsageError: the preprocessing does not fit the inputs.
    """
    if not inputs:
        raise DataError(f"the model has no inputs, so there is nothing to feed {spec} to; leave out --data")
    path = Path(spec)
    if path.is_dir():
        return _open_folder(path, inputs, image)
    if path.is_file():
        return _open_file(path, inputs)
    if CALLABLE.match(spec):
        return open_callable(spec, inputs)
    raise DataError(f"no data at {spec}; give a .npz or .npy file, a folder of those or of images, or module:callable")


def _open_file(path: Path, inputs: Sequence[InputSpec]) -> Dataset:
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise DataError(f"{path} is not .npz or .npy; convert it, put images into a folder, or write a module:callable")
    chunk = make_chunk(str(path), open_array_file(path), inputs)
    return ChunkedDataset(str(path), (chunk,), tuple(inputs))


def _open_folder(folder: Path, inputs: Sequence[InputSpec], image: ImagePreprocessing) -> Dataset:
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")),
        key=lambda path: path.relative_to(folder).parts,
    )
    arrays = [path for path in files if path.suffix.lower() in ARRAY_SUFFIXES]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if arrays and images:
        raise DataError(f"{folder} holds {len(arrays)} array files and {len(images)} images; keep one kind in a folder")
    if not arrays and not images:
        raise DataError(f"{folder} holds no .npz, .npy or image files; see --data in the documentation")
    others = len(files) - len(arrays) - len(images)
    left_out = (f"{others} files in {folder} are neither arrays nor images and were left out",) if others else ()
    if images:
        dataset: ImageFolder = open_images(folder, images, inputs, image)
        return dataclasses.replace(dataset, notes=left_out + dataset.notes)
    chunks = [make_chunk(str(path), open_array_file(path), inputs) for path in arrays]
    if left_out:
        chunks[0] = dataclasses.replace(chunks[0], notes=left_out + chunks[0].notes)
    return ChunkedDataset(f"{folder} ({len(arrays)} files)", tuple(chunks), tuple(inputs))
