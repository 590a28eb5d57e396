"""Weights below 8 bits on data that says little: dead channels, and inputs whose Gram matrix is singular."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import models
from tests.robustness.conftest import Command

WIDTH = 64
RNG = np.random.default_rng(0)
DIRECTIONS = 3


def few_directions() -> models.Array:
    """Samples that span three of 64 directions, half of the inputs always 0."""
    data = RNG.standard_normal((24, DIRECTIONS)) @ RNG.standard_normal((DIRECTIONS, WIDTH))
    data[:, ::2] = 0.0
    return data.astype(np.float32)


def with_dead_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every other output of its first layer cut off: its weights and its bias are 0."""
    for tensor in model.graph.initializer[:2]:
        array = numpy_helper.to_array(tensor).copy()
        array[..., ::2] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize("bits", ["W3A8", "W1A8:uniform", "W2A4"])
def test_dead_channels_and_singular_gram_matrices(command: Command, tmp_path: Path, bits: str) -> None:
    model = models.save(with_dead_channels(models.dense_net(width=WIDTH)), tmp_path)
    np.save(tmp_path / "x.npy", few_directions())
    ended = command(model, "--data", tmp_path / "x.npy", "--bits", bits, "--min-sqnr", "0", "--min-agreement", "0")
    assert ended.code == 0, ended.err
    report = json.loads((ended.folder / "out" / "report.json").read_text())
    assert report["verdict"]["loaded"]
    notes = [note for entry in report["passes"] for note in entry["notes"]]
    (said,) = [note for note in notes if note.startswith("singular Gram matrix of w1")]
    found = re.search(r"never varied: (\d+);", said)
    assert found is not None, said
    assert int(found[1]) >= WIDTH // 2
