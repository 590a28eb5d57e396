"""Ask ONNX Runtime, in a child process, whether it loads a model and whether two models compute the same."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from qcompiler.errors import ModelError, RuntimeUnavailable
from qcompiler.model.child import Child, start_child, stop_child

_CHILD = Path(__file__).with_name("_child.py")
_LOAD_TIMEOUT_S = 300
_LIGHT_ABOVE_BYTES = 256 * 2**20
_REASON_LENGTH = 240
_NEWEST_OPSET = re.compile(r"support for domain ai\.onnx is till opset (\d+)")
_NEWEST_IR = re.compile(r"IR version: (\d+), max supported IR version: (\d+)")
_OLDEST_OPSET = 7
"""Older operators have no kernels in ONNX Runtime."""

_NOISE = re.compile(
    r"Non-zero status code returned while running (?=\w+ node)|(?<=node\. )Name:'' |Status Message: "
    r"|\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |Load model from .*? failed:|This is an invalid model\. ?"
    r"|Exception during (?:loading|initialization): |Failed to load model (?:because|with error:) "
    r"|Fatal error: |\bError: |/\S+\.(?:cc|h):\d+ (?:[^:]|::)*?\) ?(?:const )?(?=\S)"
)


class RuntimeProbe:
    """A child process that loads a model in ONNX Runtime while this one goes on.

    Use as a context manager: leaving it ends the child.
    """

    def __init__(self, path: Path, total_bytes: int) -> None:
        self._path = path
        light = total_bytes > _LIGHT_ABOVE_BYTES
        self._child = _start({"do": "load", "path": str(path), "light": light})

    def __enter__(self) -> RuntimeProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop_child(self._child)

    def verdict(self, opset: int) -> None:
        """Return if ONNX Runtime loads the model.

        Args:
            opset: of the model, for the advice in the message.

        Raises:
            ModelError: it does not; the message holds its reason in one line.
            RuntimeUnavailable: ONNX Runtime itself does not start.
        """
        answer = _answer(self._child, _LOAD_TIMEOUT_S)
        if not answer["ok"]:
            runtime = f"onnxruntime {answer['version']}" if "version" in answer else "onnxruntime"
            raise ModelError(f"{self._path}: {runtime} does not load it: {_explain(answer['reason'], opset)}")


def same_outputs(first: Path, second: Path, tolerance: float, timeout_s: float = 120.0) -> str:
    """Return "" if both models give the same outputs on made-up inputs, else why that is not known.

    Args:
        first: the original; inputs are made up for it.
        second: the changed model.
        tolerance: relative to the largest finite value of an output.
        timeout_s: after this time the answer is "not known".
    """
    request = {"do": "compare", "first": str(first), "second": str(second), "tolerance": tolerance}
    answer = _answer(_start(request), timeout_s)
    return "" if answer["ok"] else shorten(answer["reason"])


def shorten(reason: str) -> str:
    """Return the informative part of an ONNX Runtime message, in one line."""
    text = " ".join(_NOISE.sub("", " ".join(reason.split())).split()).rstrip(" .;")
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 3] + "..."


def _start(request: dict[str, Any]) -> Child:
    return start_child(_CHILD, json.dumps(request))


def _answer(child: Child, timeout_s: float) -> dict[str, Any]:
    try:
        output, complaint = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"ok": False, "reason": f"no answer within {timeout_s:g} s"}
    finally:
        stop_child(child)
    code = child.returncode or 0
    if code == -signal.SIGKILL:
        return {"ok": False, "reason": "it was killed, perhaps for want of memory"}
    if code < 0:
        return {"ok": False, "reason": f"it crashed (signal {-code})"}
    if code or not output.strip():
        last = complaint.strip().splitlines()[-1] if complaint.strip() else f"exit code {code}"
        raise RuntimeUnavailable(f"onnxruntime does not start ({last}); install it again")
    answer: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return answer


def _explain(reason: str, opset: int) -> str:
    """Return ONNX Runtime's reason and what to do about it."""
    if newest := _NEWEST_OPSET.search(reason):
        return f"opset {opset} is newer than {newest[1]}; convert the model to one from 7 to {newest[1]}"
    if found := _NEWEST_IR.search(reason):
        return f"IR version {found[1]} is newer than {found[2]}; save the model with ir_version {found[2]}"
    short = shorten(reason)
    if 0 < opset < _OLDEST_OPSET:
        return f"{short}; opset {opset} is old, convert the model to one from {_OLDEST_OPSET} on"
    if "is not a registered function/op" in reason or "No Op registered" in reason:
        return f"{short}; replace this operator or export the model without it"
    if "Could not find an implementation" in reason or "not supported" in reason:
        return f"{short}; export the model with another operator, type or opset there"
    return f"{short}; repair the model or export it again"
