"""Compare what two models compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qcompiler.model.load import LoadedModel
from qcompiler.model.save import save_model
from tests.models import session

LOAD_TOLERANCE = 1e-5
"""Relative to the largest finite value of an output: normal form only spells operators anew."""


def assert_same_outputs(original: Path, loaded: LoadedModel, folder: Path, feeds: Mapping[str, Any]) -> None:
    """Check that the saved normal form has the interface of the original and computes the same."""
    (written, *_) = save_model(loaded.model, folder / "normalized.onnx")
    before, after = session(original), session(written)
    assert interface(after) == interface(before)
    names = {i.name for i in after.get_inputs()}
    expected = before.run(None, dict(feeds))
    found = after.run(None, {k: v for k, v in feeds.items() if k in names})
    for argument, a, b in zip(before.get_outputs(), expected, found, strict=True):
        assert_same(argument.name, a, b)


def interface(opened: Any) -> list[tuple[str, str, list[Any]]]:
    """Return names, types and shapes of what users of a model see; defaults of inputs are not part of it."""
    return [(a.name, a.type, a.shape) for a in (*opened.get_inputs(), *opened.get_outputs())]


def assert_same(name: str, a: Any, b: Any) -> None:
    if isinstance(a, list):
        assert len(a) == len(b), name
        for x, y in zip(a, b, strict=True):
            assert_same(name, x, y)
    elif not isinstance(a, np.ndarray):
        assert a == b, name
    else:
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        if a.dtype.kind == "f":
            scale = float(np.abs(a[np.isfinite(a)]).max(initial=0))
            np.testing.assert_allclose(
                b, a, rtol=LOAD_TOLERANCE, atol=LOAD_TOLERANCE * scale, equal_nan=True, err_msg=name
            )
        else:
            np.testing.assert_array_equal(b, a, err_msg=name)


def stored_inputs(folder: Path, opened: Any) -> dict[str, Any]:
    """Return the inputs that an ONNX node test keeps beside its model."""
    feeds: dict[str, Any] = {}
    for number, argument in enumerate(opened.get_inputs()):
        content = (folder / f"input_{number}.pb").read_bytes()
        if argument.type.startswith("optional"):
            feeds[argument.name] = numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
        elif argument.type.startswith("seq"):
            feeds[argument.name] = numpy_helper.to_list(onnx.SequenceProto.FromString(content))
        else:
            feeds[argument.name] = numpy_helper.to_array(onnx.TensorProto.FromString(content))
    return feeds
