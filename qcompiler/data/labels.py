"""Class labels for a dataset, from .npy or CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.dataset import Dataset
from qcompiler.data.npy import FileRows
from qcompiler.errors import DataError


def load_labels(path: str | Path, dataset: Dataset) -> NDArray[np.int64]:
    """Return the class index of every sample.

    A CSV holds ``file,label``, or labels alone; a header line and further columns are skipped. Where the data
    are image files, labels are matched by file name; else they are in the order of the rows.

    Args:
        path: a .npy file of integers, or a CSV file.
        dataset: the whole dataset, not a subset.

    Returns:
        int64, shape (samples,), or (samples, rows) where one sample is several rows.

    Raises:
        DataError: unreadable, not class indices, or another number of labels than rows.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no labels at {path}; give a .npy file or a CSV with file,label")
    if path.suffix.lower() == ".npy":
        labels = _from_npy(path)
    else:
        names, labels = _from_csv(path)
        if names and dataset.row_names:
            labels = _in_row_order(path, names, labels, dataset.row_names)
    if labels.size and labels.min() < 0:
        raise DataError(f"{path} holds the label {labels.min()}; labels are class indices from 0")
    return _fit(path, labels, dataset)


def _from_npy(path: Path) -> NDArray[np.int64]:
    rows = FileRows(path)
    if rows.dtype.kind not in "iu" or len(rows.shape) not in (1, 2) or (len(rows.shape) == 2 and rows.shape[1] != 1):
        raise DataError(f"{path} holds {rows.dtype.name} {list(rows.shape)}; labels are one integer per sample")
    values: NDArray[Any] = rows.read(0, rows.shape[0])
    return values.reshape(-1).astype(np.int64)


def _from_csv(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Return the file names ([] for labels alone) and the labels."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; give a CSV with file,label in UTF-8") from error
    column = 1 if rows and len(rows[0]) > 1 else 0
    if rows and not _is_integer(rows[0][column]):
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) <= column or not _is_integer(row[column]):
            raise DataError(f"{path}: row {number} is {','.join(row)!r}; expected file,label with an integer label")
    names = [row[0].strip() for row in rows] if column else []
    return names, np.array([int(row[column]) for row in rows], dtype=np.int64)


def _in_row_order(
    path: Path, names: list[str], labels: NDArray[np.int64], row_names: tuple[str, ...]
) -> NDArray[np.int64]:
    """Return the label of every image, found by its path in the folder or by its file name."""
    by_name = {Path(name).as_posix(): int(label) for name, label in zip(names, labels, strict=True)}
    ordered = []
    for name in row_names:
        label = by_name.get(name, by_name.get(Path(name).name))
        if label is None:
            raise DataError(
                f"{path} has no label for {name}, one of {len(row_names)} images; add it or remove the image"
            )
        ordered.append(label)
    return np.array(ordered, dtype=np.int64)


def _fit(path: Path, labels: NDArray[np.int64], dataset: Dataset) -> NDArray[np.int64]:
    samples, rows = len(dataset), dataset.rows_per_sample
    # Rows that fill no whole batch were left out of the data, but may well be labeled.
    if not samples * rows <= len(labels) < (samples + 1) * rows:
        raise DataError(
            f"{path} holds {len(labels)} labels, the data {samples * rows} rows; give one label for every row"
        )
    labels = labels[: samples * rows]
    return labels if rows == 1 else labels.reshape(samples, rows)


def _is_integer(text: str) -> bool:
    return text.strip().lstrip("-").isdecimal()
