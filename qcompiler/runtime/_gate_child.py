"""Runs an original and a compiled model for the gate, in a process of its own: a crash here is a finding.

Usage: ``python _gate_child.py JOB.json``; prints one JSON object per finished stage. It stands alone, so that
it starts in a fraction of a second and measures the runtime and nothing else. The original is judged by ONNX
Runtime; the result runs in the runtime of its target.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

WARMUP_RUNS = 2
PROFILE_RUNS = 10
MAX_PROFILE_RUNS = 300
TURN_RUNS = 5
"""Runs of one model before the next one's turn: most of them find their weights in the caches."""
PROFILE_SECONDS = 0.5
"""Short models are profiled more often: up to so many runs in so much time."""
BLOCK_SECONDS = 0.02
MIN_BLOCKS = 5
PAGE_BYTES = 4096
LOADS = 3
LOAD_SECONDS = 1.0
"""Loading is repeated until so much time is spent, or ``LOADS`` times."""

RUNTIMES = {"openvino": "_openvino_sessions.py", "qnn": "_qnn_sessions.py"}
"""Runtime of a target -> the script beside this one whose ``open_session`` opens a model in it.

What it returns has ``run`` and ``get_outputs`` as ONNX Runtime's sessions do, ``layers`` for what runs in integers,
``end_profile`` for the time of every node if it was opened for that, and ``title``, its name and version.
"""


def say(stage: str, **findings: Any) -> None:  # noqa: ANN401 - JSON values
    """Print what one stage found."""
    print(json.dumps({"stage": stage, **findings}), flush=True)


def open_session(path: str, job: dict[str, Any], optimized: str = "", profile: str = "") -> Any:  # noqa: ANN401
    """Open a session as the deployed application would: all optimizations, fixed threads."""
    options = ort.SessionOptions()
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if optimized:
        options.optimized_model_filepath = optimized
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def opener(runtime: str) -> Callable[..., Any]:
    """Return the function that opens a session in a runtime."""
    if runtime not in RUNTIMES:
        return open_session
    opened: Callable[..., Any] = runpy.run_path(str(Path(__file__).with_name(RUNTIMES[runtime])))["open_session"]
    return opened


def resident_bytes() -> int:
    """Return the resident memory of this process, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except OSError:
        return 0


class Comparison:
    """Running sums over one output of both models."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.signal = self.error = self.dot = self.own = self.max_abs = 0.0
        self.samples = 0
        self.same = True
        self.answers: tuple[list[int], list[int]] = ([], [])
        self.problem = ""

    def add(self, expected: Any, found: Any) -> None:  # noqa: ANN401 - tensors, sequences, maps
        """Take in one sample; a sequence or a map is compared tensor by tensor."""
        self.samples += 1
        first, second = leaves(expected), leaves(found)
        if len(first) != len(second):
            self.problem = f"{len(second)} tensors instead of {len(first)}"
            return
        for a, b in zip(first, second, strict=True):
            self._add(a, b)

    def _add(self, expected: Any, found: Any) -> None:  # noqa: ANN401 - arrays of any type
        if expected.dtype.kind not in "fiub":
            self.same = self.same and bool(np.array_equal(expected, found))
            return
        if expected.shape != found.shape:
            self.problem = f"shape {found.shape} instead of {expected.shape}"
            return
        a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        finite = np.isfinite(a)
        if not np.isfinite(b[finite]).all():
            self.problem = "NaN or infinity where the original is finite"
            return
        a, b = a[finite], b[finite]
        self.same = self.same and bool(np.array_equal(a, b))
        self.signal += float(a @ a)
        self.own += float(b @ b)
        self.dot += float(a @ b)
        self.error += float(np.sum((a - b) ** 2))
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max(initial=0.0)))
        if expected.ndim == 2 and expected.shape[1] > 1 and expected.dtype.kind == "f":
            self.answers[0].extend(int(i) for i in expected.argmax(1))
            self.answers[1].extend(int(i) for i in found.argmax(1))

    def result(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return {
            "name": self.name,
            "signal": self.signal,
            "error": self.error,
            "dot": self.dot,
            "own": self.own,
            "max_abs": self.max_abs,
            "samples": self.samples,
            "same": self.same,
            "answers": self.answers,
            "problem": self.problem,
        }


def leaves(value: Any) -> list[Any]:  # noqa: ANN401 - whatever the runtime returns
    """Return the arrays in an output: its own, those of a sequence, or the keys and the values of a map."""
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    if isinstance(value, dict):
        return [np.asarray(list(value)), np.asarray(list(value.values()))]
    return [np.asarray(value)]


def read_sample(folder: str, index: int) -> dict[str, Any]:
    """Return the feeds of one sample; only this package's own parent process writes these files."""
    with np.load(Path(folder) / f"{index:05d}.npz", allow_pickle=False) as archive:
        return {k: archive[k].astype(object) if archive[k].dtype.kind == "U" else archive[k] for k in archive.files}


class BrokenModelError(Exception):
    """One of the models does not load, or does not run a sample."""

    def __init__(self, kind: str, reason: Exception, sample: int | None = None) -> None:
        super().__init__(str(reason))
        self.kind, self.sample = kind, sample


def run_sample(session: Any, kind: str, job: dict[str, Any], index: int) -> list[Any]:  # noqa: ANN401
    """Return the outputs of one model for one sample; a failure says which."""
    feeds = read_sample(job["samples"], index)
    try:
        return list(session.run(None, feeds))
    except Exception as error:
        raise BrokenModelError(kind, error, index) from error


def compare(original: Any, result: Any, job: dict[str, Any]) -> None:  # noqa: ANN401
    """Run all samples through both models and report the sums of every output."""
    outputs = [Comparison(o.name) for o in original.get_outputs()]
    kept: dict[str, Any] = {}
    for index in range(job["count"]):
        expected = run_sample(original, "original", job, index)
        found = run_sample(result, "result", job, index)
        for output, a, b in zip(outputs, expected, found, strict=True):
            output.add(a, b)
            if job["save_outputs"] and isinstance(a, np.ndarray):
                kept[f"original/{index:05d}/{output.name}"] = a
                kept[f"result/{index:05d}/{output.name}"] = b
    if job["save_outputs"]:
        np.savez(job["save_outputs"], **kept)
    say("compare", outputs=[o.result() for o in outputs])


def save_outputs(session: Any, job: dict[str, Any], kind: str) -> None:  # noqa: ANN401
    """Run all samples through one model and keep its outputs, for models that do not fit in memory together."""
    names = [o.name for o in session.get_outputs()]
    for index in range(job["count"]):
        values = run_sample(session, kind, job, index)
        np.savez(Path(job["samples"]) / f"{kind}-{index:05d}.npz", **dict(zip(names, values, strict=True)))
    say("outputs", names=names)


def timed(session: Any, feeds: dict[str, Any], runs: int) -> list[float]:  # noqa: ANN401
    """Return the milliseconds of each of ``runs`` runs."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, feeds)
        found.append((time.perf_counter() - start) * 1e3)
    return found


def latency(sessions: list[Any], job: dict[str, Any]) -> None:
    """Time the sessions in alternating blocks, so that both see the same disturbances."""
    feeds = read_sample(job["samples"], 0)
    once = max(max(timed(s, feeds, WARMUP_RUNS)) for s in sessions) / 1e3
    runs = max(1, int(BLOCK_SECONDS / max(once, 1e-6)))
    deadline = time.perf_counter() + job["latency_seconds"]
    blocks: list[list[list[float]]] = []
    while len(blocks) < MIN_BLOCKS or time.perf_counter() < deadline:
        order = range(len(sessions)) if len(blocks) % 2 == 0 else reversed(range(len(sessions)))
        block: list[list[float]] = [[] for _ in sessions]
        for which in order:
            block[which] = timed(sessions[which], feeds, runs)
        blocks.append(block)
    say("latency", blocks=blocks, warmup=WARMUP_RUNS)


def profile(job: dict[str, Any], plain: dict[str, Any]) -> None:
    """Report where both models spend their time, node by node, and what a run takes without the profiler.

    A node is reported as [name, operator, microseconds of the fastest run, mean of the faster half of the runs,
    elements of its first output]; the profile counts whole microseconds, so a mean says more than a median.
    Runs with and without the profiler alternate; their times say what the profiler itself costs.

    Args:
        job: what to run.
        plain: "original" and "result" -> a session without profiler.
    """
    feeds = read_sample(job["samples"], 0)
    kinds = [kind for kind in ("original", "result") if job.get(kind)]
    start = opener(job["runtime"])
    sessions = {kind: start(job[kind], job, profile=str(Path(job["samples"]) / kind)) for kind in kinds}
    walls: dict[str, list[list[float]]] = {kind: [[], []] for kind in kinds}
    runs, deadline = job.get("profile_runs", PROFILE_RUNS), time.perf_counter() + PROFILE_SECONDS
    done = 0
    while done < runs or (done < MAX_PROFILE_RUNS and time.perf_counter() < deadline):
        for kind, session in sessions.items():
            for times, one in zip(walls[kind], (session, plain[kind]), strict=True):
                times += [t * 1e3 for t in timed(one, feeds, TURN_RUNS)]
        done += TURN_RUNS
    if job["runtime"] in RUNTIMES:
        found = {kind: [[*row, row[-1], 0] for row in s.end_profile()] for kind, s in sessions.items()}
        say("profile", nodes=found)
        return
    events = {k: json.loads(Path(s.end_profiling()).read_text("utf-8")) for k, s in sessions.items()}
    totals = {kind: run_times(events[kind], *walls[kind]) for kind in kinds}
    say("profile", nodes={kind: node_times(found) for kind, found in events.items()}, runs=totals)


def run_times(events: list[dict[str, Any]], profiled: list[float], plain: list[float]) -> list[float]:
    """Return [fastest run, median run, fixed cost of a run] in microseconds, without the profiler.

    The fixed cost is what passes between the caller and the runtime's executor, whatever the model.
    """
    inside = sorted(float(e["dur"]) for e in events if e.get("name") == "model_run")
    fixed = max(0.0, min(profiled) - inside[0]) if inside else 0.0
    return [min(plain), sorted(plain)[len(plain) // 2], fixed]


def node_times(events: list[dict[str, Any]]) -> list[list[Any]]:
    """Return one row per node of a profile; the first run, which allocates, does not count."""
    times: dict[tuple[str, str], list[float]] = {}
    elements: dict[tuple[str, str], int] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            arguments = event["args"]
            key = (event["name"].removesuffix("_kernel_time"), arguments.get("op_name", ""))
            times.setdefault(key, []).append(float(event["dur"]))
            shapes = [shape for entry in arguments.get("output_type_shape", [])[:1] for shape in entry.values()]
            elements[key] = int(np.prod(shapes[0])) if shapes else 0
    rows = []
    for (name, op), found in times.items():
        kept = sorted(found[1:] or found)
        half = kept[: max(1, (len(kept) + 1) // 2)]
        rows.append([name, op, kept[0], sum(half) / len(half), elements[name, op]])
    return rows


def status_bytes(key: str) -> int:
    """Return a figure of this process's memory, such as VmHWM, the peak; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def load_once(path: str, job: dict[str, Any]) -> dict[str, Any] | None:
    """Load a model in a copy of this process, and return what that took; None if it failed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            before, start = status_bytes("VmRSS"), time.perf_counter()
            session = open_session(path, job)
            seconds, peak = time.perf_counter() - start, status_bytes("VmHWM")
            os.write(writer, json.dumps({"seconds": seconds, "peak": max(peak - before, 0)}).encode())
            del session
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    found: dict[str, Any] | None = json.loads(text) if text else None
    return found


def loads(job: dict[str, Any]) -> None:
    """Report what loading each model takes: the fastest and the smallest of a few alternating attempts.

    A fresh process has no memory that an earlier session left; a copy of this one costs no time to start.
    """
    if not hasattr(os, "fork"):
        return
    kinds = [kind for kind in ("original", "result") if job.get(kind)]
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    deadline = time.perf_counter() + LOAD_SECONDS
    for attempt in range(LOADS):
        if attempt and time.perf_counter() > deadline:
            break
        for kind in kinds:
            measured = load_once(job[kind], job)
            found[kind] += [measured] if measured else []
    best = {k: {key: min(one[key] for one in v) for key in ("seconds", "peak")} for k, v in found.items() if v}
    say("loads", **best)


def load(job: dict[str, Any]) -> dict[str, Any]:
    """Return the sessions of the models to compare, and report what they cost; each has run once."""
    sessions, memory, seconds = {}, {}, {}
    for kind in ("original", "result"):
        if not job.get(kind):
            continue
        runtime = job["runtime"] if kind == "result" else job["reference"]
        before, start = resident_bytes(), time.perf_counter()
        try:
            optimized = (job.get("optimized") or "") if kind == "result" else ""
            sessions[kind] = opener(runtime)(job[kind], job, optimized)
        except Exception as error:
            raise BrokenModelError(kind, error) from error
        seconds[kind] = time.perf_counter() - start
        if job["count"]:
            run_sample(sessions[kind], kind, job, 0)
        if job["runtime"] not in RUNTIMES:  # the memory of two runtimes says nothing about two models
            memory[kind] = max(resident_bytes() - before, 0)
        if kind == "result" and runtime in RUNTIMES:
            say("layers", layers=sessions[kind].layers(), title=sessions[kind].title)
    say("load", memory=memory, seconds=seconds)
    return sessions


def main() -> None:
    """Run the stages of the job in order."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    ort.set_default_logger_severity(4)
    stages = set(job["stages"])
    if "loads" in stages and job["runtime"] not in RUNTIMES:
        loads(job)
    sessions = load(job)
    if "compare" in stages:
        compare(sessions["original"], sessions["result"], job)
    for kind, session in sessions.items():
        if "outputs" in stages:
            save_outputs(session, job, kind)
    if stages & {"latency", "profile"} and job["runtime"] in RUNTIMES:
        try:
            sessions["original"] = opener(job["runtime"])(job["original"], job)
            sessions["original"].run(None, read_sample(job["samples"], 0))
        except Exception as error:  # what the runtime does with the original is no fault of the result
            say("untimed", reason=f"the original does not run in this runtime: {' '.join(str(error).split())}")
            return
    if "latency" in stages:
        latency(list(sessions.values()), job)
    if "profile" in stages:
        profile(job, sessions)


if __name__ == "__main__":
    try:
        main()
    except Exception as failure:
        culprit, sample = getattr(failure, "kind", ""), getattr(failure, "sample", None)
        reason = " ".join(str(failure).split()) or type(failure).__name__
        say("failed", reason=reason, culprit=culprit, sample=sample)
        sys.exit(1)
