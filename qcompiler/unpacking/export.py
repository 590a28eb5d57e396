"""Fixed-to-fixed streams as files of their own, for decoders that are not ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompiler.codec.f2f_file import to_bytes
from qcompiler.codec.fixed_to_fixed import Encrypted
from qcompiler.unpacking.writer import Unpacker

_STREAMS_OF = "fixed-to-fixed streams"
"""Key under which a graph keeps its streams; not written to model files."""
FOLDER = "f2f"


def mark_streams(writer: Unpacker, name: str, streams: Encrypted) -> None:
    """Let a graph know the streams that one of its weights is stored in."""
    writer.graph.meta[_STREAMS_OF] = {**writer.graph.meta.get(_STREAMS_OF, {}), name: streams}


def streams_of(model: ir.Model) -> dict[str, Encrypted]:
    """Return the planned weights of a model that are stored in streams, by name."""
    return dict(model.graph.meta.get(_STREAMS_OF, {}))


def export_streams(model: ir.Model, folder: Path) -> list[Path]:
    """Write ``f2f/NAME.f2f`` and ``f2f/NAME.matrix.npy`` for every weight that is stored in streams; none if none is.

    The matrix of the XOR network is uint8 0 or 1 of shape (outputs, 8 * (registers + 1)), see ``XorNetwork.matrix``.
    """
    written: list[Path] = []
    for number, (name, streams) in enumerate(sorted(streams_of(model).items())):
        place = folder / FOLDER / f"{number:03d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:80]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        file, matrix = place.with_name(f"{place.name}.f2f"), place.with_name(f"{place.name}.matrix.npy")
        file.write_bytes(to_bytes(streams))
        np.save(matrix, streams.network.matrix())
        written += [file, matrix]
    return written
