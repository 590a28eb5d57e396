"""Runs models in ONNX Runtime for ``probe``, in a process of its own, because a hostile model may crash it.

Usage: ``python _child.py REQUEST`` with a JSON object on the command line; prints one JSON object. It stands
alone: it must start in a fraction of a second, so it imports nothing of this package.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_FREE_SIZES = (1, 2, 8, 16, 32, 64, 128, 224)
_DRAWS = ("normal", "uniform")
"""How floats are drawn; flags are true in the first draw and false in the second, to see both branches."""

_NUMPY_TYPES = {"float": "float32", "double": "float64", "bool": "bool_"}


def _session(path: str, light: bool) -> Any:  # noqa: ANN401
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if light:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _load(path: str, light: bool) -> dict[str, Any]:
    """Return whether ONNX Runtime loads a model; the cheap way first where ``light`` asks for it."""
    try:
        _session(path, light)
    except Exception as error:
        if light:
            return _load(path, light=False)
        return {"ok": False, "reason": str(error), "version": ort.__version__}
    return {"ok": True, "reason": "", "version": ort.__version__}


def _synthetic(argument: Any, free: int, draw: str) -> NDArray[Any]:  # noqa: ANN401
    rng = np.random.default_rng(0)
    kind = argument.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(d if isinstance(d, int) and d >= 0 else free for d in argument.shape)
    if kind == "string":
        return np.full(shape, "a", dtype=object)
    dtype = np.dtype(_NUMPY_TYPES.get(kind, kind))
    if dtype == np.bool_:
        return np.full(shape, draw == "normal")
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0, 2, shape), dtype=dtype)
    return np.asarray(rng.standard_normal(shape) if draw == "normal" else rng.random(shape), dtype=dtype)


def _compare(first: str, second: str, tolerance: float) -> dict[str, Any]:
    """Return whether two models give the same outputs on inputs made up for the first one."""
    original, changed = _session(first, light=False), _session(second, light=False)
    failure, compared = "", 0
    for free in _FREE_SIZES:
        for draw in _DRAWS:
            try:
                feeds = {i.name: _synthetic(i, free, draw) for i in original.get_inputs()}
                expected = original.run(None, feeds)
            except Exception as error:
                failure = str(error)
                continue
            found = changed.run(None, feeds)
            compared += 1
            for output, a, b in zip(original.get_outputs(), expected, found, strict=True):
                if not _same(a, b, tolerance):
                    return {"ok": False, "reason": f"output '{output.name}' differs"}
        if compared:
            return {"ok": True, "reason": ""}
    return {"ok": False, "reason": f"the original does not run on made-up inputs ({failure})"}


def _same(a: Any, b: Any, tolerance: float) -> bool:  # noqa: ANN401
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if not isinstance(a, np.ndarray):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    finite = np.isfinite(a)
    scale = float(np.abs(a[finite], dtype=np.float64).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def main() -> None:
    """Answer the request on the command line."""
    request = json.loads(sys.argv[1])
    ort.set_default_logger_severity(4)
    if request["do"] == "load":
        answer = _load(request["path"], request["light"])
    else:
        try:
            answer = _compare(request["first"], request["second"], request["tolerance"])
        except Exception as error:
            answer = {"ok": False, "reason": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
