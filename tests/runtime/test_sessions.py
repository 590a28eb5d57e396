"""Opening models that are in memory: with external constants, and too large for protobuf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.model.load import load_model
from qcompiler.runtime import sessions
from qcompiler.runtime.sessions import open_ir
from tests import models


@pytest.mark.parametrize("limit", [2**30, 0])
def test_external_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Both ways: as one protobuf, and through a temporary file."""
    monkeypatch.setattr(sessions, "EXTERNAL_ABOVE_BYTES", limit)
    path = models.with_external_data(models.dense_net(width=64), tmp_path)
    model = load_model(path).model
    feeds = models.random_inputs(path)
    expected = models.run(path, feeds)
    np.testing.assert_array_equal(open_ir(model).run(None, feeds)[0], expected[0])
    external = [v.const_value for v in model.graph.initializers.values()]
    assert any(isinstance(t, sessions.ir.ExternalTensor) for t in external), "the model itself did not change"
