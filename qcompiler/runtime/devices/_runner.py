"""Measures models on the device that it was copied to, and says what it found in one line of JSON.

Usage: ``python _runner.py FOLDER``, with ``job.json`` in the folder. It needs NumPy and onnxruntime, imports
nothing of this package, and keeps to Python 3.8, because boards have the Python that they came with.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

MARK = "qcompile:"
WARMUP_RUNS = 2
BLOCK_SECONDS = 0.02
MIN_BLOCKS = 5
PROFILE_RUNS = 10
CPUS = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")


class FailureError(Exception):
    """What kept the models from being measured.

    Attributes:
        kind: "missing" (a package), "load" or "run" (a model).
        which: number of the model; None where it is none of them.
    """

    def __init__(self, kind: str, reason: object, which: int | None = None) -> None:
        super().__init__(" ".join(str(reason).split()) or type(reason).__name__)
        self.kind, self.which = kind, which


# -- the machine ---------------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    """Return what a file of the system says, "" where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def numbers(paths: list[Path], unit: float) -> list[float]:
    """Return the numbers in some files, divided by a unit; files without a number are left out."""
    found = []
    for path in paths:
        with contextlib.suppress(ValueError):
            found.append(float(text_of(path)) / unit)
    return found


def machine() -> str:
    """Return board or processor, architecture, number of processors and operating system."""
    name = text_of(Path("/proc/device-tree/model"))
    for line in text_of(Path("/proc/cpuinfo")).splitlines():
        if not name and line.startswith("model name"):
            name = line.partition(":")[2].strip()
    name = name or platform.processor() or "unknown processor"
    return f"{name}, {platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}"


def health() -> dict[str, Any]:
    """Return governors, frequencies in MHz, temperatures in degrees Celsius and throttling counts."""
    zones = {}
    for zone in sorted(THERMAL.glob("thermal_zone*")):
        found = numbers([zone / "temp"], 1000.0)
        if found:
            zones[f"{zone.name[12:]} {text_of(zone / 'type')}".strip()] = found[0]
    clocks = sorted(CPUS.glob("cpu[0-9]*/cpufreq"))
    counts = numbers(sorted(CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")), 1.0)
    return {
        "governors": sorted({text_of(c / "scaling_governor") for c in clocks} - {""}),
        "mhz": numbers([c / "scaling_cur_freq" for c in clocks], 1000.0),
        "allowed_mhz": numbers([c / "scaling_max_freq" for c in clocks], 1000.0),
        "hardware_mhz": numbers([c / "cpuinfo_max_freq" for c in clocks], 1000.0),
        "celsius": zones,
        "throttled": int(sum(counts)),
    }


def peak_bytes() -> int:
    """Return the largest resident memory that this process had, 0 where the system does not tell."""
    for line in text_of(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


# -- the models ----------------------------------------------------------------------------------------


def load_packages() -> tuple[Any, Any]:
    """Return NumPy and onnxruntime."""
    try:
        import numpy
        import onnxruntime
    except Exception as error:  # a wheel for another processor or libc raises more than ImportError
        raise FailureError("missing", error) from error
    return numpy, onnxruntime


def open_session(ort: Any, job: dict[str, Any], which: int, profile: str = "") -> Any:  # noqa: ANN401
    """Open one model as a deployed application would: all optimizations, fixed threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    try:
        return ort.InferenceSession(job["models"][which], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FailureError("load", error, which) from error


def read_sample(np: Any, path: str) -> dict[str, Any]:  # noqa: ANN401
    """Return the inputs of one run."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in arrays.items()}


def timed(session: Any, feeds: dict[str, Any], runs: int) -> list[float]:  # noqa: ANN401
    """Return the milliseconds of each of ``runs`` runs."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, feeds)
        found.append(round((time.perf_counter() - start) * 1e3, 6))
    return found


def warm_up(sessions: list[Any], feeds: dict[str, Any]) -> float:
    """Run every model and return the seconds of the slowest run."""
    slowest = 0.0
    for which, session in enumerate(sessions):
        try:
            slowest = max(slowest, *timed(session, feeds, WARMUP_RUNS))
        except Exception as error:
            raise FailureError("run", error, which) from error
    return slowest / 1e3


def latency(sessions: list[Any], feeds: dict[str, Any], once: float, seconds: float) -> list[Any]:
    """Return run times in ms, [block][model][run]; the models alternate, so that all see the same load."""
    runs = max(1, int(BLOCK_SECONDS / max(once, 1e-6)))
    deadline = time.perf_counter() + seconds
    blocks: list[list[list[float]]] = []
    while len(blocks) < MIN_BLOCKS or time.perf_counter() < deadline:
        order = list(range(len(sessions)))
        block: list[list[float]] = [[] for _ in sessions]
        for which in order if len(blocks) % 2 == 0 else reversed(order):
            block[which] = timed(sessions[which], feeds, runs)
        blocks.append(block)
    return blocks


def node_times(session: Any, feeds: dict[str, Any]) -> list[list[Any]]:  # noqa: ANN401
    """Return [name, operator, mean microseconds] of every node, from the runtime's own profile."""
    for _ in range(PROFILE_RUNS):
        session.run(None, feeds)
    suffix = "_kernel_time"
    totals: dict[tuple[str, str], float] = {}
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            key = (event["name"][: -len(suffix)], event["args"].get("op_name", ""))
            totals[key] = totals.get(key, 0.0) + event["dur"] / PROFILE_RUNS
    return [[name, op, us] for (name, op), us in totals.items()]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the job asks for."""
    np, ort = load_packages()
    ort.set_default_logger_severity(4)
    feeds = read_sample(np, job["sample"])
    sessions = [open_session(ort, job, which) for which in range(len(job["models"]))]
    once = warm_up(sessions, feeds)
    # After the first runs: clocks that rise from idle are no sign of anything.
    before = health()
    blocks = latency(sessions, feeds, once, job["seconds"])
    after, memory = health(), peak_bytes()
    nodes = []
    if job["layers"]:
        profiled = [open_session(ort, job, i, f"profile-{i}") for i in range(len(sessions))]
        nodes = [node_times(session, feeds) for session in profiled]
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "peak_memory_bytes": memory,
        "before": before,
        "after": after,
        "warmup": WARMUP_RUNS,
        "blocks": blocks,
        "nodes": nodes,
    }


def main() -> int:
    """Measure and print; return the exit code."""
    os.chdir(sys.argv[1])
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    if hasattr(signal, "alarm"):
        signal.alarm(job["limit_s"])  # ends a run that nobody waits for anymore, inside the runtime too
    try:
        answer = measure(job)
    except FailureError as error:
        answer = {"failure": {"kind": error.kind, "reason": str(error), "which": error.which}}
    print(MARK + json.dumps(answer), flush=True)
    return 1 if "failure" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
