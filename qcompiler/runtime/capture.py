"""Running a float graph over samples and looking at its inner values, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.errors import DataError
from qcompiler.model.edit import clone
from qcompiler.model.probe import shorten
from qcompiler.runtime.sessions import open_ir

Feeds = dict[str, NDArray[np.generic]]


class Executor:
    """Runs one model and returns chosen values of its main graph.

    Args:
        model: the model to run.
        values: names of main-graph values to return; graph inputs are passed through.
        threads: threads of the session.
    """

    def __init__(self, model: ir.Model, values: Sequence[str], threads: int = 1) -> None:
        copy = clone(model)
        inputs = {v.name for v in copy.graph.inputs}
        made = {o.name: o for n in copy.graph for o in n.outputs}
        outputs = {v.name for v in copy.graph.outputs}
        self._passed = [v for v in values if v in inputs]
        self._fetched = [v for v in values if v not in inputs]
        copy.graph.outputs.extend(made[v] for v in dict.fromkeys(self._fetched) if v not in outputs)
        self._session = open_ir(copy, threads=threads)

    def run(self, feeds: Feeds) -> dict[str, NDArray[np.generic]]:
        """Return the chosen values for one sample.

        Raises:
            DataError: the model does not run on it.
        """
        try:
            found = self._session.run(self._fetched, feeds) if self._fetched else []
        except Exception as error:  # the binding raises a dozen unrelated types
            raise DataError(shorten(str(error))) from error
        return {**dict(zip(self._fetched, found, strict=True)), **{v: feeds[v] for v in self._passed}}


def stream(
    model: ir.Model,
    values: Sequence[str],
    samples: Dataset,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Yield the chosen values for every sample in order; only one sample is in memory at a time.

    Raises:
        DataError: the model does not run on a sample.
    """
    executor = Executor(model, values, threads)
    for index in range(len(samples)):
        feeds = samples[index]
        try:
            found = executor.run(feeds)
        except DataError as error:
            raise does_not_run(samples.source, index, str(error)) from error
        yield found
        if progress is not None:
            progress(index + 1, len(samples))


def does_not_run(source: str, index: int, reason: str) -> DataError:
    """Return the error for a sample that the original model itself does not run on."""
    return DataError(
        f"sample {index} of {source} does not run in the original model ({reason}); "
        "give samples that it takes with --data"
    )
