"""Every operator test of the onnx package ends in a verified model or in one line; none of them in a traceback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompiler.targets.arm import Arm
from tests import models
from tests.robustness.in_process import without_processes
from tests.robustness.node_models import (
    NEWEST_IR,
    NEWEST_OPSET,
    Inputs,
    node_cases,
    readable,
    stored_inputs,
    weight_cases,
    with_room,
    write_data,
)
from tests.robustness.outcomes import Outcome, compile_to, problem

SHARDS = 12
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "nothing_to_compress.txt"
UNFED = ("seq(", "optional(", "map(", "bfloat16", "float8", "float4", "int4", "int2")
"""What stands in the types of inputs and outputs that hold no tensor, or one that NumPy cannot hold."""


def loads(model: onnx.ModelProto) -> onnxruntime.InferenceSession | None:
    """Return a session of ONNX Runtime, the judge of what a model is; None if it refuses the model."""
    try:
        return models.session(model)
    except Exception:
        return None


def runs(session: onnxruntime.InferenceSession, inputs: Inputs) -> bool:
    """Return True if the model runs on these finite inputs."""
    if not all(np.isfinite(v).all() for v in inputs.values() if v.dtype.kind == "f"):
        return False
    try:
        session.run(None, inputs)
    except Exception:
        return False
    return True


def is_unfed(session: onnxruntime.InferenceSession) -> bool:
    """Return True if an input or an output is of a kind that is refused with a line of its own."""
    inputs = [i.type for i in session.get_inputs()]
    outputs = [o.type for o in session.get_outputs() if o.type.startswith("tensor(")]
    return any(word in kind for kind in (*inputs, *outputs) for word in UNFED)


def checked(case: Any, folder: Path) -> str:
    """Return what is wrong with how a case's model ends, "" if nothing is.

    It is compiled without data and, where it does not run on made-up inputs, with the inputs that are stored
    with the case.
    """
    options = {"targets": ("reference",), "allow_unchanged": True}
    model = readable(case.model)
    if model != case.model:
        outcome = compile_to(models.save(case.model, folder), folder / "out", **options)
        if wrong := problem(outcome, frozenset({3})):
            return wrong
        if "is newer than" not in outcome.line:
            return f"refused, but not for its opset or IR version: {outcome.line}"
    path = models.save(model, folder)
    outcome = compile_to(path, folder / "out", **options)
    if wrong := problem(outcome, frozenset({0, 3})):
        return wrong
    if outcome.code == 0:
        return ""
    session = loads(model)
    if session is None or is_unfed(session):
        return ""
    inputs = stored_inputs(case)
    if "--data" not in outcome.line or not inputs:
        return f"ONNX Runtime loads it, and it was refused: {outcome.line}"
    write_data(inputs, folder / "samples.npz")
    again = compile_to(path, folder / "out", data=str(folder / "samples.npz"), **options)
    return problem(again, frozenset({0} if runs(session, inputs) else {3}))


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_operator(shard: int, tmp_path: Path) -> None:
    cases = list(node_cases().items())
    assert len(cases) > 1500
    wrong = {}
    with without_processes():
        for name, case in cases[shard::SHARDS]:
            if found := checked(case, tmp_path):
                wrong[name] = found
    assert wrong == {}


def weight_outcomes(folder: Path, target: str, *, room: bool) -> dict[str, tuple[Outcome, bool]]:
    """Return name -> outcome, and whether ONNX Runtime loads the model, of every case with constant weights."""
    found = {}
    with without_processes():
        for name, model, inputs in weight_cases():
            path = models.save(with_room(model) if room else model, folder)
            write_data(inputs, folder / "samples.npz", smallest=0.9)
            outcome = compile_to(path, folder / "out", targets=(target,), data=str(folder / "samples.npz"))
            found[name] = outcome, loads(model) is not None
    return found


def test_constant_weights_are_compressed_or_have_a_reason(tmp_path: Path) -> None:
    lines = []
    for name, (outcome, loaded) in weight_outcomes(tmp_path, "reference", room=False).items():
        assert problem(outcome, frozenset({0, 5} if loaded else {3})) == "", name
        if outcome.code == 5:
            reasons = outcome.line.partition("nothing to compress for ")[2].rpartition("; ")[0]
            assert reasons.count(": ") >= 2, outcome.line
            lines.append(f"{name}: {reasons}")
    text = "\n".join(sorted(lines)) + "\n"
    if os.environ.get("QCOMPILER_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), "look at the change, then set QCOMPILER_UPDATE_GOLDEN=1"


@pytest.mark.parametrize("target", ["reference", "arm"])
def test_constant_weights_in_integers(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with room in the file, so that even the smallest weights may become integers and are verified."""
    monkeypatch.setattr(Arm, "artifacts", lambda self: ())
    integers = 0
    for name, (outcome, loaded) in weight_outcomes(tmp_path, target, room=True).items():
        assert problem(outcome, frozenset({0, 5} if loaded else {3})) == "", name
        for result in outcome.results:
            share = result.report.verdict.integer
            integers += share is not None and share.integer_nodes > 0
    assert integers >= 20


def test_limits_of_the_installed_runtime() -> None:
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    info = ("x", models.FLOAT, [1]), ("y", models.FLOAT, [1])
    model = models.build([relu], [info[0]], [info[1]], opset=NEWEST_OPSET)
    model.ir_version = NEWEST_IR
    assert loads(model) is not None
    model.opset_import[0].version = NEWEST_OPSET + 1
    assert loads(model) is None
    model.opset_import[0].version, model.ir_version = NEWEST_OPSET, NEWEST_IR + 1
    assert loads(model) is None
