"""ONNX Runtime sessions with every setting that changes results made explicit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from qcompiler.errors import RuntimeUnavailable
from qcompiler.model.edit import clone, load_external
from qcompiler.model.save import EXTERNAL_ABOVE_BYTES, constant_bytes, save_model, to_proto

PROVIDERS = ("CPUExecutionProvider",)


def runtime_version() -> str:
    """Return the version of the installed ONNX Runtime."""
    return str(onnxruntime.__version__)


def open_session(
    model: bytes | Path,
    *,
    threads: int = 1,
    optimize: bool = True,
    optimized_path: Path | None = None,
    profile_prefix: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open a session on the CPU provider.

    Args:
        model: serialized model, or a path (needed for external data and for ``.ort`` files).
        threads: intra-op threads; inter-op is sequential.
        optimize: run all graph optimizations; False runs the graph as written.
        optimized_path: where to save the graph that really runs.
        profile_prefix: file prefix of a per-node profile; None does not profile.

    Raises:
        RuntimeUnavailable: ONNX Runtime does not load the model; the message is its own, on one line.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=list(PROVIDERS))
    except Exception as error:  # the binding raises a dozen unrelated types
        raise RuntimeUnavailable(f"ONNX Runtime refuses the model: {one_line(error)}") from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception's text on one line, cut at ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def open_ir(model: ir.Model, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a session on a model in memory; one too large for protobuf goes through a temporary file.

    Raises:
        RuntimeUnavailable: ONNX Runtime does not load the model.
    """
    if constant_bytes(model) > EXTERNAL_ABOVE_BYTES:
        with tempfile.TemporaryDirectory(prefix="qcompile-session-") as name:
            path = Path(name) / "model.onnx"
            save_model(model, path)
            return open_session(path, threads=threads)
    copy = clone(model)
    load_external(copy)
    return open_session(to_proto(copy).SerializeToString(), threads=threads)
