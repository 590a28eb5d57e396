"""Turning how a run ended into typed records, or into one line that says what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnxruntime

from qcompiler.errors import LatencyUnavailable, ModelError, QCompileError, RuntimeUnavailable
from qcompiler.model.probe import shorten
from qcompiler.records import DeviceReport, LatencyComparison, LatencyProfile
from qcompiler.runtime.devices.bundle import LIMIT_S, Bundle, Device, Outcome
from qcompiler.runtime.devices.health import drift, health_of, throttling_signs
from qcompiler.runtime.gate_process import latency_comparison, latency_profile

_NO_SUCH_PROGRAM = (126, 127)
_ALARM, _KILLED = 14, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a device measured.

    Attributes:
        profile: latency of the first model of the bundle.
        comparison: the first model as the result, the second as the original; None if there is no second.
        report: where, and under which conditions.
        nodes: for every model, (name in the runtime's graph, operator, microseconds) of its nodes; empty unless
            asked for.
    """

    profile: LatencyProfile
    comparison: LatencyComparison | None
    report: DeviceReport
    nodes: tuple[list[tuple[str, str, float]], ...]


def measure(device: Device, bundle: Bundle) -> Measured:
    """Return what a device measured.

    Raises:
        ModelError: a model does not run on this machine.
        RuntimeUnavailable: the device cannot be reached, lacks something, or does not run the model.
        LatencyUnavailable: the run did not come to its end.
    """
    outcome = device.run(bundle)
    answers = [line for line in outcome.lines if "blocks" in line or "failure" in line]
    if not answers:
        raise _without_answer(device, outcome)
    answer: dict[str, Any] = answers[-1]
    if "failure" in answer:
        raise _failed(device, bundle, answer["failure"])
    try:
        return _measured(device, answer, bundle)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QCompileError(f"the answer of {device.name} cannot be read ({error!r})") from error


def _measured(device: Device, answer: dict[str, Any], bundle: Bundle) -> Measured:
    blocks, warmup, machine = answer["blocks"], int(answer["warmup"]), str(answer["machine"])
    first = [time for block in blocks for time in block[0]]
    profile = replace(latency_profile(first, warmup=warmup, threads=bundle.threads), machine=machine)
    comparison = None
    if len(bundle.models) > 1:
        # The comparison takes (original, result); the bundle has the result first.
        swapped = [(block[1], block[0]) for block in blocks]
        found = latency_comparison(swapped, warmup=warmup, threads=bundle.threads)
        original = replace(found.original, machine=machine)
        comparison = replace(found, original=original, result=profile)
    before, after, drifted = health_of(answer["before"]), health_of(answer["after"]), drift(blocks)
    versions = {name: str(answer[name]) for name in ("python", "numpy", "onnxruntime")}
    report = DeviceReport(
        name=device.name,
        machine=machine,
        versions=versions,
        peak_memory_bytes=int(answer["peak_memory_bytes"]),
        before=before,
        after=after,
        drift=drifted,
        throttling=throttling_signs(before, after, drifted),
        notes=tuple(_notes(versions, after.governors)),
    )
    nodes = tuple([(str(n), str(op), float(us)) for n, op, us in found] for found in answer["nodes"])
    return Measured(profile=profile, comparison=comparison, report=report, nodes=nodes)


def _notes(versions: Mapping[str, str], governors: tuple[str, ...]) -> list[str]:
    notes = []
    there, here = versions["onnxruntime"], onnxruntime.__version__
    if there != here:
        notes.append(
            f"ONNX Runtime is {there} there and {here} here: what was compiled and verified here may run by other "
            "kernels there"
        )
    moving = [g for g in governors if g != "performance"]
    if moving:
        notes.append(f"the governor '{', '.join(moving)}' changes frequencies as it sees fit; 'performance' does not")
    return notes


# -- what went wrong -----------------------------------------------------------------------------------


def _failed(device: Device, bundle: Bundle, failure: dict[str, Any]) -> QCompileError:
    """Return the error for a failure that the device itself reported."""
    kind, reason = failure["kind"], shorten(str(failure["reason"])).rstrip(".")
    if kind == "missing":
        return RuntimeUnavailable(
            f"{device.name} lacks what runs a model ({reason}); install there: pip install numpy onnxruntime, or name "
            "a Python that has them with ?python=PATH"
        )
    if kind == "disk":
        return RuntimeUnavailable(f"{device.name} has no room for the model: {reason}; free some space there")
    which = failure.get("which")
    model = bundle.labels[which] if which is not None else "the model"
    if device.is_here:
        return ModelError(f"{model} does not run: {reason}; check the file and the data")
    verb = "load" if kind == "load" else "run"
    return RuntimeUnavailable(f"{model} does not {verb} on {device.name}: {reason}; its ONNX Runtime may be older")


def _without_answer(device: Device, outcome: Outcome) -> QCompileError:
    """Return the error for a run that ended without a word."""
    if not device.is_here and not outcome.started:
        if outcome.code in _NO_SUCH_PROGRAM:
            return RuntimeUnavailable(
                f"{device.name} has no such Python ({outcome.last_error}); install Python 3.8 or newer there, or name "
                "it with ?python=PATH"
            )
        return RuntimeUnavailable(
            f"{device.name} did not start the runner (exit code {outcome.code}: {shorten(outcome.last_error)}); it "
            "needs Python 3.8 or newer"
        )
    number = outcome.signal
    if number == _ALARM:
        return LatencyUnavailable(f"{device.name} did not finish within {LIMIT_S} s; nothing was measured")
    end = f"signal {number}" if number else f"exit code {outcome.code}"
    if device.is_here:
        return ModelError(f"the runtime crashed with {end} while it ran the model; check the file")
    hint = "; is its memory too small?" if number == _KILLED else f": {shorten(outcome.last_error)}"
    return LatencyUnavailable(f"{device.name} ended the run with {end}{hint}")
