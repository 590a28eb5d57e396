"""A dataset made of chunks: one array file, a folder of them, or what a callable gave."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.casting import cast, check_castable
from qcompiler.data.dataset import Feeds, InputSpec
from qcompiler.data.layout import Axes, Layout, find_layout
from qcompiler.data.npy import FileRows, Rows
from qcompiler.errors import DataError


@dataclass(frozen=True, eq=False)
class Chunk:
    """Arrays that belong together: one file, or one item of a callable.

    Attributes:
        where: what messages call it.
        arrays: the array of every input of the model.
        layouts: how each is cut into samples.
        samples: number of samples.
        notes: conversions and leftovers.
    """

    where: str
    arrays: Mapping[str, Rows]
    layouts: Mapping[str, Layout]
    samples: int
    notes: tuple[str, ...]

    def sample(self, index: int, inputs: Sequence[InputSpec]) -> Feeds:
        """Return the feeds of one sample, in the model's dtypes."""
        return {spec.name: cast(self._cut(spec.name, index), spec, self.where) for spec in inputs}

    def _cut(self, name: str, index: int) -> NDArray[Any]:
        layout, rows = self.layouts[name], self.arrays[name]
        values: NDArray[Any] = rows.read(index * layout.rows, (index + 1) * layout.rows)
        if layout.axes is Axes.STACKED:
            values = values.reshape(values.shape[1:])
        return values[np.newaxis] if layout.axes is Axes.SINGLE else values


def make_chunk(where: str, arrays: Mapping[str, Rows], inputs: Sequence[InputSpec]) -> Chunk:
    """Match arrays with the model's inputs; only their headers are read.

    Raises:
        DataError: names, types, shapes or lengths do not fit.
    """
    matched, notes = _match(where, arrays, inputs)
    layouts = {}
    for spec in inputs:
        note = check_castable(matched[spec.name].dtype, spec, where)
        notes += [note] if note else []
        layouts[spec.name] = layout = find_layout(spec, matched[spec.name].shape, where)
        if layout.dropped:
            notes.append(f"{where}: the last {layout.dropped} rows of {spec.name!r} fill no batch of {layout.rows}")
    counts = {name: layout.samples for name, layout in layouts.items() if layout.samples is not None}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{where}: the inputs have different numbers of samples ({listed}); give each the same")
    if not counts:
        raise DataError(f"{where}: nothing but scalars; give each input one value per sample along a first axis")
    return Chunk(where, matched, layouts, min(counts.values()), tuple(notes))


@dataclass(frozen=True, eq=False)
class ChunkedDataset:
    """Samples of one or more chunks, in their order. Shapes may differ from chunk to chunk."""

    source: str
    chunks: tuple[Chunk, ...]
    inputs: tuple[InputSpec, ...]
    preprocessing: str = "none (arrays are fed as they are)"

    row_names = ()

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was converted, renamed or left out, without repetitions."""
        return tuple(dict.fromkeys(note for chunk in self.chunks for note in chunk.notes))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes, or of the arrays where there are no files."""
        return fingerprint_chunks(self.chunks)

    @property
    def rows_per_sample(self) -> int:
        """Rows of the first input in one sample."""
        return self.inputs[0].batch

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(chunk.samples for chunk in self.chunks))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> Feeds:
        """Return the feeds of one sample."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self._ends, index)
        chunk = self.chunks[which]
        return chunk.sample(index - self._ends[which] + chunk.samples, self.inputs)


def fingerprint_chunks(chunks: Sequence[Chunk]) -> str:
    """Return the SHA-256 over all chunks: file bytes where they are files, else names, types and values."""
    digest = hashlib.sha256()
    for chunk in chunks:
        files = {rows.path for rows in chunk.arrays.values() if isinstance(rows, FileRows)}
        for path in sorted(files):
            digest.update(file_digest(path))
        if not files:
            for name, rows in sorted(chunk.arrays.items()):
                values = rows.read(0, rows.shape[0] if rows.shape else 1)
                digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
                digest.update(_value_bytes(values))
    return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file's bytes.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error


def _value_bytes(values: NDArray[Any]) -> bytes:
    return repr(values.tolist()).encode() if values.dtype.hasobject else np.ascontiguousarray(values).tobytes()


def _match(where: str, arrays: Mapping[str, Rows], inputs: Sequence[InputSpec]) -> tuple[dict[str, Rows], list[str]]:
    """Return the array of every input, and notes on what did not match by name."""
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if not missing:
        extra = sorted(set(arrays) - {spec.name for spec in inputs})
        notes = [f"{where}: {', '.join(map(repr, extra))} is no input of the model and was left out"] if extra else []
        return {spec.name: arrays[spec.name] for spec in inputs}, notes
    if len(inputs) == len(arrays) == 1:
        (name,) = arrays
        note = [f"{where}: array {name!r} feeds input {inputs[0].name!r}, the only one"] if name else []
        return {inputs[0].name: arrays[name]}, note
    found = ", ".join(repr(name) for name in arrays if name) or "one array without a name"
    raise DataError(
        f"{where} has no array for input {', '.join(map(repr, missing))}; it holds {found}, "
        f"the model takes {', '.join(repr(spec.name) for spec in inputs)}. Name the arrays as the inputs"
    )
