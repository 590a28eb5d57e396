"""Running a float graph over samples and looking at its inner values, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.errors import DataError
from qcompiler.runtime.sessions import open_session, serialize

Feeds = dict[str, NDArray[np.generic]]


class Executor:
    """Runs one model and returns chosen values of its main graph.

    Args:
        model: the model to run.
        values: names of main-graph values to return; graph inputs are passed through.
        threads: threads of the session.
    """

    def __init__(self, model: ir.Model, values: Sequence[str], threads: int = 1) -> None:
        inputs = {v.name for v in model.graph.inputs}
        self._passed = [v for v in values if v in inputs]
        self._fetched = [v for v in values if v not in inputs]
        proto = onnx.ModelProto()
        proto.ParseFromString(serialize(model))
        present = {o.name for o in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=v) for v in self._fetched if v not in present)
        self._session = open_session(proto.SerializeToString(), threads=threads)

    def run(self, feeds: Feeds) -> dict[str, NDArray[np.generic]]:
        """Return the chosen values for one sample."""
        found = self._session.run(self._fetched, feeds) if self._fetched else []
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
        DataError: a sample makes the model produce no numbers at all, or does not fit it.
    """
    executor = Executor(model, values, threads)
    for index in range(len(samples)):
        try:
            yield executor.run(samples[index])
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise DataError(f"sample {index} of {samples.source} does not run: {text[:240]}") from error
        if progress is not None:
            progress(index + 1, len(samples))
