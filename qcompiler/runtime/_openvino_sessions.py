"""Opens models in OpenVINO for the gate's child process; it stands alone, as that does."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, cast

INTEGERS = frozenset({"u8", "i8"})
NO_WORK = frozenset({"Const", "Input", "Output"})


@dataclass(frozen=True)
class Output:
    """An output, named as in the model."""

    name: str


class Session:
    """A compiled model with the interface of an ONNX Runtime session, as far as the gate uses it."""

    def __init__(self, compiled: Any, title: str) -> None:  # noqa: ANN401 - OpenVINO's own
        self._compiled, self.title = compiled, title
        self._request = compiled.create_infer_request()
        self._profiling = bool(compiled.get_property("PERF_COUNT"))
        self._spent: dict[tuple[str, str], float] = {}
        self._runs = 0

    def get_outputs(self) -> list[Output]:
        """Return the outputs in the order of the model."""
        return [Output(port.any_name) for port in self._compiled.outputs]

    def run(self, names: None, feeds: dict[str, Any]) -> list[Any]:
        """Return all outputs; feeds are read in place, outputs are copies."""
        found = self._request.infer(feeds, share_inputs=True)
        if self._profiling:
            self._runs += 1
            for node in self._request.profiling_info:
                key = (node.node_name, node.node_type)
                self._spent[key] = self._spent.get(key, 0.0) + node.real_time.total_seconds() * 1e6
        return [found[port] for port in self._compiled.outputs]

    def layers(self) -> list[list[Any]]:
        """Return [names in the model, operator, reads integers] of every node of the execution graph."""
        found = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            if facts.get("layerType") in NO_WORK:
                continue
            names = [name for name in facts.get("originalLayersNames", "").split(",") if name]
            integer = facts.get("runtimePrecision", "") in INTEGERS
            found.append([names or [node.get_friendly_name()], facts.get("layerType", ""), integer])
        return found

    def end_profile(self) -> list[list[Any]]:
        """Return [name, operator, mean microseconds] of every node that took time."""
        return [[name, op, us / self._runs] for (name, op), us in self._spent.items() if us > 0]


def load_openvino() -> Any:  # noqa: ANN401 - OpenVINO has no types
    """Return the library, imported without its telemetry: it would report every import to an analytics service.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    modules = cast("dict[str, Any]", sys.modules)
    modules.setdefault("openvino_telemetry", None)  # an entry of None makes the import fail
    import openvino

    return openvino


def open_session(path: str, job: dict[str, Any], optimized: str = "", profile: str = "") -> Session:
    """Compile a model for this processor as an application that wants low latency would.

    Float stays float32: on processors with bfloat16 OpenVINO's default would round it.
    """
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": job["threads"],
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": bool(profile),
    }
    openvino = load_openvino()
    title = f"OpenVINO {openvino.get_version().split('-')[0]}"
    return Session(openvino.Core().compile_model(path, "CPU", settings), title)
