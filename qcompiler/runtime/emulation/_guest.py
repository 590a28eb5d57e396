"""Runs models on an emulated board: ``python _guest.py JOB.json``, by the emulated Python.

Prints one JSON object per model. ``os.getppid`` marks places for the plugin that counts instructions; the order
of the marks is part of the contract with ``run``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

COUNTED_RUNS = 2


def run_model(kind: str, job: dict[str, Any]) -> None:
    """Save the outputs of a model, run it between marks, then, for nodes, once more with the runtime's own profiler."""
    from qcompiler.runtime import _gate_child as gate

    path, samples = job["models"][kind], Path(job["samples"])
    try:
        session = gate.open_session(path, job)
    except Exception as error:
        raise gate.BrokenModelError(kind, error) from error
    names = [o.name for o in session.get_outputs()]
    for index in range(job["counts"][kind]):
        values = gate.run_sample(session, kind, job, index)
        np.savez(samples / f"{job['board']}-{kind}-{index:05d}.npz", **dict(zip(names, values, strict=True)))
    feeds = gate.read_sample(job["samples"], 0)
    session.run(None, feeds)
    mark_runs(session, feeds, COUNTED_RUNS)
    if not job["nodes"]:
        gate.say("ran", kind=kind, profile="")
        return
    profiled = gate.open_session(path, job, profile=str(samples / f"{job['board']}-{kind}"))
    profiled.run(None, feeds)
    mark_runs(profiled, feeds, 1)
    gate.say("ran", kind=kind, profile=profiled.end_profiling())


def mark_runs(session: Any, feeds: dict[str, Any], runs: int) -> None:  # noqa: ANN401
    """Run a model, with a mark before, between and after the runs."""
    os.getppid()
    for _ in range(runs):
        session.run(None, feeds)
        os.getppid()


def main() -> None:
    """Run the models of the job in order."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    ort.set_default_logger_severity(4)
    # Behind the board's own packages: this machine's are for another processor.
    sys.path.append(str(Path(__file__).resolve().parents[3]))
    for kind in job["models"]:
        run_model(kind, job)


if __name__ == "__main__":
    try:
        main()
    except Exception as failure:
        reason = " ".join(str(failure).split()) or type(failure).__name__
        print(json.dumps({"stage": "failed", "reason": reason, "culprit": getattr(failure, "kind", "")}), flush=True)
        sys.exit(1)
