"""Every error this package raises on purpose, and the exit code it ends in.

::

    QCompileError                 1   a bug of ours: a broken contract, reported with a traceback file
    |-- UsageError                2   what was asked makes no sense: flags, recipe, pass or target names
    |-- InputError                3   the model or the data was refused
    |   |-- ModelError
    |   `-- DataError
    |-- FloorMissed               4   the result was written, run and measured, and falls short
    |-- NothingToCompress         5   no tensor of this model can be compressed for this target
    |-- RuntimeUnavailable        6   the target's runtime is missing or cannot run here
    |   `-- LatencyUnavailable
    `-- OutputError               7   the file system refused

An interrupt (Ctrl-C) ends in 130. Messages are one line: what was found, where, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

EXIT_CODES: dict[int, str] = {
    0: "written, loaded, run, and every asked floor held",
    1: "a bug of ours (the traceback is in a file)",
    2: "usage: flags, recipe, pass or target names",
    3: "model or data refused",
    4: "a floor was missed (report and rejected model in DIR.failed/)",
    5: "nothing to compress (nothing written; --allow-unchanged makes it 0)",
    6: "the target's runtime is unavailable",
    7: "file system",
    130: "interrupted",
}


class QCompileError(Exception):
    """Root of every error this package raises on purpose; by itself, a contract we broke."""

    exit_code: ClassVar[int] = 1


class UsageError(QCompileError):
    """The request makes no sense: an unknown name, a value out of range, options that conflict."""

    exit_code = 2


class InputError(QCompileError):
    """The model or the data cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """The model file is missing, broken, hostile or beyond what the runtime loads."""


class DataError(InputError):
    """Calibration data, verification data or labels do not fit the model."""


class FloorMissed(QCompileError):
    """The compiled model was measured and falls short of a floor.

    Attributes:
        results: the ``CompileResult`` of every target, those that hold their floors too.
    """

    exit_code = 4

    def __init__(self, message: str, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results = tuple(results)


class NothingToCompress(QCompileError):
    """No tensor of the model can be compressed for the target."""

    exit_code = 5


class RuntimeUnavailable(QCompileError):
    """The runtime that the target needs is missing or cannot run on this machine."""

    exit_code = 6


class LatencyUnavailable(RuntimeUnavailable):
    """No latency was measured, because there is no hardware to measure on; never a guess instead."""


class OutputError(QCompileError):
    """The file system refused: no permission, no space, or an existing output without --force."""

    exit_code = 7
