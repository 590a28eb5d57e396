"""The contenders: quantization by ``onnxruntime.quantization``, each run in a fresh process.

``blocks4`` has weights of 4 bits in blocks of 64, of products and tables, by its quantizer for MatMulNBits, which needs
opset 21 and writes a broken file from an older one without saying so.

The static contenders write QDQ with uint8 activations and per-channel int8 weights, which its documentation
recommends for x86 processors with VNNI, and differ in the calibrator, whose options stay at their defaults.
A model below opset 13 is converted to 17 first, because per-channel DequantizeLinear needs 13 (without it the
tool writes a file that does not load). ``quant_pre_process`` runs where it succeeds. If ``quantize_static``
then fails, it is tried once more without its adjustment of weight scales to int32 biases: that is the only
failure known (a Gemm bias of shape [1, N]), and this way around it gives the contender its best figures.

Run as a script this file is the worker that quantizes one model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.process import ToolRun, run_measured

if TYPE_CHECKING:
    import onnx

STATIC_METHODS = ("minmax", "percentile", "entropy")
DYNAMIC = "dynamic"
INT4 = "int4"
BLOCKS4 = "blocks4"

_CONVERT_BELOW = 13
_CONVERT_TO = 17
_INT4_OPSET = 21
_BLOCK = 64
_NO_BIAS_ADJUSTMENT = "QDQDisableWeightAdjustForInt32Bias"
_MEMORY_LIMIT_BYTES = 18 * 2**30


def run_rival(method: str, model: Path, calibration: Path, folder: Path) -> ToolRun:
    """Quantize a model with one contender in a fresh process.

    Args:
        method: one of ``STATIC_METHODS``; ``INT4``, min-max with weights of 4 bits; or ``DYNAMIC`` or ``BLOCKS4``,
            which read no samples.
        model: the float model.
        calibration: .npz of arrays by input name, samples first.
        folder: where to write; the file is named after the method.
    """
    output = folder / f"ort_{method}.onnx"
    notes_path = output.with_suffix(".json")
    command = [sys.executable, "-m", "benchmarks.rivals", method, str(model), str(calibration), str(output)]
    measured = run_measured(command, folder, _MEMORY_LIMIT_BYTES)
    notes = json.loads(notes_path.read_text(encoding="utf-8")) if notes_path.is_file() else []
    written = measured.exit_code == 0 and output.is_file()
    if not written:
        notes.append(measured.failure)
    return ToolRun(f"ORT {method}", output if written else None, measured, "; ".join(notes))


# The worker's imports stay inside its functions: the process that starts it and the tables do not need them.


def _quantize(method: str, model: Path, calibration: Path, output: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rival-") as scratch:
        least, to = (_INT4_OPSET, _INT4_OPSET) if method in (INT4, BLOCKS4) else (_CONVERT_BELOW, _CONVERT_TO)
        loaded = _untied(_converted(onnx.load(model), least, to, notes), notes)
        prepared = _prepare(loaded, Path(scratch), notes)
        if method == DYNAMIC:
            quantize_dynamic(prepared, output, per_channel=True, weight_type=QuantType.QInt8)
        elif method == BLOCKS4:
            _quantize_blocks(loaded, output)
        else:
            _quantize_static(method, prepared, calibration, output, notes)
    output.with_suffix(".json").write_text(json.dumps(notes), encoding="utf-8")


def _untied(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Return a model in which no Gemm shares its weight: the tool transposes it in place, under its other readers."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = [name for node in model.graph.node for name in node.input]
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in constants and uses.count(name) > 1:
            copied = model.graph.initializer.add()
            copied.CopyFrom(constants[name])
            copied.name = node.input[1] = f"{name}_of_{node.name}"
            notes.append("shared weight of a Gemm stored twice, as the file is broken otherwise")
    return model


def _converted(model: onnx.ModelProto, least: int, to: int, notes: list[str]) -> onnx.ModelProto:
    from onnx import version_converter

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= least:
        return model
    notes.append(f"opset {opset} converted to {to}")
    return version_converter.convert_version(model, to)


def _prepare(model: onnx.ModelProto, scratch: Path, notes: list[str]) -> Path:
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    float_path, prepared = scratch / "float.onnx", scratch / "prepared.onnx"
    onnx.save(model, float_path)
    try:
        quant_pre_process(float_path, prepared)
    except Exception as error:  # whatever it is, the contender goes on with the plain model
        notes.append(f"quant_pre_process failed ({type(error).__name__})")
        return float_path
    notes.append("quant_pre_process")
    return prepared


def _quantize_blocks(model: onnx.ModelProto, output: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    axes = {"MatMul": 0, "Gather": 1}
    made = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=_BLOCK,
        accuracy_level=4,
        op_types_to_quantize=tuple(axes),
        quant_axes=tuple(axes.items()),
    )
    made.process()
    made.model.save_model_to_file(str(output))


def _quantize_static(method: str, prepared: Path, calibration: Path, output: Path, notes: list[str]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
        INT4: CalibrationMethod.MinMax,
    }
    quantize: Callable[..., None] = partial(
        quantize_static,
        prepared,
        output,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt4 if method == INT4 else QuantType.QInt8,
        calibrate_method=methods[method],
    )
    try:
        quantize(calibration_data_reader=_reader(calibration))
    except ValueError:
        notes.append(f"{_NO_BIAS_ADJUSTMENT}, as quantize_static fails without")
        quantize(calibration_data_reader=_reader(calibration), extra_options={_NO_BIAS_ADJUSTMENT: True})


def _reader(calibration: Path) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader

    from benchmarks.scoring import feeds

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            with np.load(calibration) as archive:
                self._feeds = feeds({name: archive[name] for name in archive.files})

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    return Reader()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Quantize one model with onnxruntime.quantization.")
    parser.add_argument("method", choices=(*STATIC_METHODS, INT4, BLOCKS4, DYNAMIC))
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    _quantize(arguments.method, arguments.model, arguments.calibration, arguments.output)


if __name__ == "__main__":
    _main()
