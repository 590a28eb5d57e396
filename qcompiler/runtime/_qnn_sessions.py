"""Opens models in Qualcomm's HTP simulator for the gate's child process, and writes context binaries.

Usage: ``python _qnn_sessions.py MODEL.onnx MODEL_ctx.onnx``. It imports nothing of this package. Nodes are never
left to the processor: a model that the HTP does not run as a whole is refused.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import onnx
import onnxruntime as ort

PROVIDER = "QNNExecutionProvider"
SOC = {"soc_model": "57", "htp_arch": "75"}
"""Snapdragon 8 Gen 3 (SM8650), which context binaries are written for."""
FUSED = frozenset({"Relu", "Clip"})


class Session:
    """A session whose every node runs on the HTP, with what else the gate asks of a runtime."""

    def __init__(self, path: str, options: ort.SessionOptions) -> None:
        self._path = path
        self.title = f"Qualcomm's HTP simulator (onnxruntime-qnn {version('onnxruntime-qnn')})"
        self._session = open_whole(path, options)

    def get_outputs(self) -> list[Any]:
        """Return the outputs in the order of the model."""
        return list(self._session.get_outputs())

    def run(self, names: None, feeds: dict[str, Any]) -> list[Any]:
        """Return all outputs."""
        return list(self._session.run(names, feeds))

    def layers(self) -> list[list[Any]]:
        """Return [names, operator, runs in integers] of every node.

        The provider takes the integer kernel for a node that stands between DequantizeLinear and QuantizeLinear,
        and 16-bit floats for all others.
        """
        nodes = list(onnx.load(self._path, load_external_data=False).graph.node)
        made = {name: node for node in nodes for name in node.output}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)

        def integer(node: onnx.NodeProto) -> bool:
            after = readers.get(node.output[0], [])
            if len(after) == 1 and after[0].op_type in FUSED:
                after = readers.get(after[0].output[0], [])
            before = [made[name].op_type for name in node.input[:2] if name in made]
            codes = bool(before) and set(before) == {"DequantizeLinear"}
            return codes and bool(after) and {n.op_type for n in after} == {"QuantizeLinear"}

        return [[[node.name, *node.output], node.op_type, integer(node)] for node in nodes]

    def end_profile(self) -> list[list[Any]]:
        """Return nothing: a simulator's times are nobody's."""
        return []


def session_options(threads: int = 1, *, fallback: bool = False) -> ort.SessionOptions:
    """Return options that put every node on the HTP, the grids of inputs and outputs included."""
    import onnxruntime_qnn

    if not any(device.ep_name == PROVIDER for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if fallback else "1")
    settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0", **SOC}
    options.add_provider_for_devices(devices[:1], settings)
    return options


def open_whole(path: str, options: ort.SessionOptions) -> ort.InferenceSession:
    """Open a model on the HTP alone; the error says which nodes it does not run."""
    try:
        return ort.InferenceSession(path, options)
    except ort.capi.onnxruntime_pybind11_state.Fail as error:
        left = left_out(path)
        raise RuntimeError(f"the HTP does not run {', '.join(left)}" if left else str(error)) from error


def left_out(path: str) -> list[str]:
    """Return the nodes that would be left to the processor if they might."""
    options = session_options(fallback=True)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    groups = ort.InferenceSession(path, options).get_provider_graph_assignment_info()
    return [f"{n.op_type} '{n.name}'" for group in groups if group.ep_name != PROVIDER for n in group.get_nodes()]


def open_session(path: str, job: dict[str, Any], optimized: str = "", profile: str = "") -> Session:
    """Open a model on the simulated HTP."""
    return Session(path, session_options(job["threads"]))


def main() -> None:
    """Write the context binary of a model, inside an ONNX file of one EPContext node."""
    options = session_options()
    options.add_session_config_entry("ep.context_enable", "1")
    options.add_session_config_entry("ep.context_embed_mode", "1")
    options.add_session_config_entry("ep.context_file_path", sys.argv[2])
    open_whole(sys.argv[1], options)


if __name__ == "__main__":
    main()
