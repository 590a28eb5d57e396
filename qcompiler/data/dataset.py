"""The one protocol every source of samples follows, and what the model says about its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Feeds: TypeAlias = dict[str, NDArray[Any]]
"""What one run of the model takes: an array for every input, keyed by the input's name."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of the model.

    Attributes:
        name: the input's name.
        dtype: NumPy dtype of its elements; object for strings.
        dims: an int where the model fixes the size, a symbol or None where it does not.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str | None, ...]

    @property
    def batch(self) -> int:
        """Rows of the first axis in one sample: the size the model fixes it to, else 1."""
        first = self.dims[0] if self.dims else 1
        return first if isinstance(first, int) else 1

    def __str__(self) -> str:
        """Return the type as messages show it, such as ``float32 (N, 3, 224, 224)``."""
        name = "string" if self.dtype.hasobject else self.dtype.name
        dims = ", ".join("?" if d is None else str(d) for d in self.dims)
        return f"{name} ({dims})"


class Dataset(Protocol):
    """Samples that can be read one at a time, in any order, and give the same values every time.

    Item ``i`` holds the feeds of one sample. The batch axis is kept, with size 1, or with the model's own
    size where the model fixes it to more than 1; then a sample is that many rows.
    """

    @property
    def source(self) -> str:
        """Where the samples come from, for people."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal; independent of paths and times."""
        ...

    @property
    def preprocessing(self) -> str:
        """What was done to the stored values before they are fed, for people."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was converted, renamed or left out, one sentence each."""
        ...

    @property
    def rows_per_sample(self) -> int:
        """Rows of the first input in one sample; 1 unless the model fixes its batch to more."""
        ...

    @property
    def row_names(self) -> tuple[str, ...]:
        """File name of every row, for labels that name files; empty where rows have no names."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Feeds:
        """Return the feeds of one sample.

        Raises:
            IndexError: no such sample.
            DataError: the values cannot be read or do not fit the model.
        """
        ...


@dataclass(frozen=True, eq=False)
class Subset:
    """Some samples of a dataset, in the given order; itself a Dataset."""

    dataset: Dataset
    indices: tuple[int, ...]

    @property
    def source(self) -> str:
        """Where the samples come from, with how many of how many."""
        return f"{self.dataset.source} ({len(self.indices)} of {len(self.dataset)} samples)"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole dataset's fingerprint and the indices."""
        return hashlib.sha256(f"{self.dataset.fingerprint}{list(self.indices)}".encode()).hexdigest()

    @property
    def preprocessing(self) -> str:
        """The same as the whole dataset's."""
        return self.dataset.preprocessing

    @property
    def notes(self) -> tuple[str, ...]:
        """The same as the whole dataset's."""
        return self.dataset.notes

    @property
    def rows_per_sample(self) -> int:
        """The same as the whole dataset's."""
        return self.dataset.rows_per_sample

    @property
    def row_names(self) -> tuple[str, ...]:
        """File names of the chosen rows."""
        names, rows = self.dataset.row_names, self.rows_per_sample
        return tuple(n for i in self.indices for n in names[i * rows : (i + 1) * rows])

    def __len__(self) -> int:
        """Return the number of chosen samples."""
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Feeds:
        """Return the feeds of one chosen sample."""
        return self.dataset[self.indices[index]]


def spec_digest(inputs: Sequence[InputSpec]) -> str:
    """Return a text that is equal exactly for equal input lists, to be hashed."""
    return repr([(spec.name, spec.dtype.str, spec.dims) for spec in inputs])
