"""Arrays in .npy files and .npz archives, read a few rows at a time, without ever unpickling.

Stored (uncompressed) data is read in place; a compressed member is unpacked once into an unnamed temporary
file. Either way memory holds only the rows that were asked for.
"""

from __future__ import annotations

import math
import tempfile
import weakref
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import DataError, OutputError


class Rows(Protocol):
    """An array whose rows can be read without reading the others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements as stored."""
        ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return ``array[start:stop]``; the whole array where it is a scalar."""
        ...


@dataclass(frozen=True, eq=False)
class MemoryRows:
    """Rows of an array that is in memory anyway."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        return self.array.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return ``array[start:stop]``; the whole array where it is a scalar."""
        return self.array[start:stop] if self.array.ndim else self.array


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    length: int
    """Bytes before the first element."""

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows of an array in a .npy file or in a member of a .npz archive.

    Attributes:
        path: the file.
        member: name of the archive's member; "" for a .npy file.
    """

    path: Path
    member: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self._header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements as stored."""
        return self._header.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return ``array[start:stop]``; the whole array where it is a scalar.

        Raises:
            DataError: the file is truncated, damaged or gone.
        """
        header = self._header
        if header.fortran_order and len(header.shape) > 1:
            flat = self._elements(0, math.prod(header.shape))
            return flat.reshape(header.shape, order="F")[start:stop]
        row = math.prod(header.shape[1:])
        rows = (len(range(header.shape[0])[start:stop]),) if header.shape else ()
        flat = self._elements(start * row if rows else 0, math.prod(rows) * row)
        return flat.reshape(rows + header.shape[1:])

    def _elements(self, first: int, count: int) -> NDArray[Any]:
        size = self._header.dtype.itemsize
        try:
            if self._unpacked is not None:
                return _read(self._unpacked, self._header.length + first * size, count, self._header.dtype)
            with self.path.open("rb") as file:
                return _read(file, self._data_offset + first * size, count, self._header.dtype)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self._where}: {error}; write the file again") from error

    @property
    def _where(self) -> str:
        return f"{self.path}[{self.member.removesuffix('.npy')}]" if self.member else str(self.path)

    @cached_property
    def _info(self) -> zipfile.ZipInfo | None:
        if not self.member:
            return None
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.member)

    @cached_property
    def _header(self) -> _Header:
        try:
            if self._info is None:
                size = self.path.stat().st_size
                with self.path.open("rb") as file:
                    header = _read_header(file)
            else:
                size = self._info.file_size
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                    header = _read_header(stream)
        except (
            OSError,
            ValueError,
            EOFError,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise DataError(f"cannot read {self._where}: {error}; write it again with numpy.save") from error
        if header.dtype.hasobject or header.dtype.names:
            raise DataError(
                f"{self._where} holds Python objects or records, and pickles are never read; save plain arrays"
            )
        if header.length + header.data_bytes > size:
            raise DataError(
                f"{self._where} is truncated: {size} bytes, {header.length + header.data_bytes} expected; "
                f"write the file again"
            )
        return header

    @cached_property
    def _data_offset(self) -> int:
        """Byte offset of the first element in the file; only for data that is stored as it is."""
        if self._info is None:
            return self._header.length
        with self.path.open("rb") as file:
            # The local header repeats the name with an extra field of its own length.
            file.seek(self._info.header_offset + 26)
            lengths = file.read(4)
        name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
        return self._info.header_offset + 30 + name + extra + self._header.length

    @cached_property
    def _unpacked(self) -> IO[bytes] | None:
        """A temporary copy of a compressed member; None where the file can be read in place."""
        if self._info is None or self._info.compress_type == zipfile.ZIP_STORED:
            return None
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this object
        weakref.finalize(self, file.close)
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            try:
                while block := stream.read(1 << 20):
                    file.write(block)
            except zipfile.BadZipFile as error:
                raise DataError(f"{self._where} is damaged: {error}; write the file again") from error
            except OSError as error:
                raise OutputError(f"no room to unpack {self._where} in {tempfile.gettempdir()}: {error}") from error
        return file


def open_array_file(path: Path) -> dict[str, Rows]:
    """Return the arrays of a .npz archive by name, or the one array of a .npy file under the name "".

    Raises:
        DataError: not such a file, or one that holds Python objects.
    """
    if path.suffix.lower() == ".npy":
        return {"": FileRows(path)}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}; write it again with numpy.savez") from error
    if not members:
        raise DataError(f"{path} holds no arrays; write it with numpy.savez, arrays named as the model's inputs")
    return {name.removesuffix(".npy"): FileRows(path, name) for name in members}


def _read_header(stream: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} of the .npy format is for records, not plain arrays")
    return _Header(shape, fortran, dtype, stream.tell())


def _read(file: IO[bytes], offset: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    file.seek(offset)
    values = np.fromfile(file, dtype=dtype, count=count)
    if len(values) != count:
        raise ValueError("the file is truncated")
    return values
