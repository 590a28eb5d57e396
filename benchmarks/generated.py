"""Generated models and data: what the suite can run with no file but its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_CHANNELS = 24
_SIDE = 32
_CLASSES = 10


def textures(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Return smooth random images in -1..1, float32 (count, 3, 32, 32).

    Low frequencies dominate, as in photographs: with white noise every channel would have nearly the same
    range in every image, and calibrators would hardly differ.
    """
    generator = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(generator.standard_normal((count, 3, _SIDE, _SIDE)))
    rows = np.fft.fftfreq(_SIDE)[:, None]
    columns = np.fft.rfftfreq(_SIDE)[None, :]
    images = np.fft.irfft2(spectrum / (1 / _SIDE + np.hypot(rows, columns)), s=(_SIDE, _SIDE))
    peaks = np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    return np.asarray(images / peaks, dtype=np.float32)


class _GraphWriter:
    """Collects the nodes and random initializers of a graph; every tensor is named after its node."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(seed)

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        node = helper.make_node(op_type, inputs, [name], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def weight(self, name: str, shape: tuple[int, ...], spread: float = 0.0) -> str:
        """Add He-scaled normal weights; ``spread`` is the log-normal spread of the channels' scales."""
        values = self._generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        factors = np.exp(spread * self._generator.standard_normal(shape[0]))
        return self._constant(name, values * factors.reshape(-1, *[1] * (len(shape) - 1)))

    def bias(self, name: str, size: int) -> str:
        return self._constant(name, 0.1 * self._generator.standard_normal(size))

    def conv(self, source: str, name: str, channels: tuple[int, int], kernel: int, group: int = 1) -> str:
        """Add a padded convolution with bias; ``channels`` are those of its output and its input."""
        shape = (channels[0], channels[1] // group, kernel, kernel)
        weight = self.weight(f"{name}.weight", shape, spread=0.5)
        inputs = [source, weight, self.bias(f"{name}.bias", channels[0])]
        pads = [kernel // 2] * 4
        return self.node("Conv", inputs, name, kernel_shape=[kernel] * 2, pads=pads, group=group)

    def _constant(self, name: str, values: npt.NDArray[np.float64]) -> str:
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name


def write_residual_cnn(path: Path) -> None:
    """Write a CNN of depthwise-separable residual blocks with random weights: ``image`` to ``logits``."""
    graph = _GraphWriter(seed=0)
    value = graph.node("Relu", [graph.conv("image", "stem", (_CHANNELS, 3), 3)], "stem_relu")
    for block in range(3):
        name = f"block{block}"
        inner = graph.conv(value, f"{name}_depthwise", (_CHANNELS, _CHANNELS), 3, group=_CHANNELS)
        inner = graph.node("Relu", [inner], f"{name}_relu")
        inner = graph.conv(inner, f"{name}_pointwise", (_CHANNELS, _CHANNELS), 1)
        value = graph.node("Relu", [graph.node("Add", [value, inner], f"{name}_add")], f"{name}_out")
    pooled = graph.node("Flatten", [graph.node("GlobalAveragePool", [value], "pool")], "flat", axis=1)
    head = [pooled, graph.weight("head.weight", (_CLASSES, _CHANNELS)), graph.bias("head.bias", _CLASSES)]
    graph.node("Gemm", head, "logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, _SIDE, _SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", _CLASSES])
    _save(
        helper.make_graph(graph.nodes, "generated_residual", [image], [logits], graph.initializers),
        path,
    )


def write_matmul_stack(path: Path, layers: int, width: int) -> None:
    """Write a stack of equal MatMul layers, ``input`` to ``output``, with all weights in one external file.

    37 layers of 4096x4096 float32 are 2.3 GiB, above what one protobuf message can hold. The weights are
    written layer by layer, so that writing needs the memory of one layer.
    """
    generator = np.random.default_rng(0)
    weights = path.with_suffix(".weights")
    nodes, initializers = [], []
    with weights.open("wb") as file:
        for layer in range(layers):
            values = generator.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))
            location = {"location": weights.name, "offset": file.tell(), "length": values.nbytes}
            file.write(values.tobytes())
            tensor = TensorProto(name=f"weight{layer}", data_type=TensorProto.FLOAT, dims=values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in location.items():
                tensor.external_data.add(key=key, value=str(value))
            initializers.append(tensor)
            source = "input" if layer == 0 else f"hidden{layer - 1}"
            target = "output" if layer == layers - 1 else f"hidden{layer}"
            nodes.append(helper.make_node("MatMul", [source, tensor.name], [target], name=f"layer{layer}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in ("input", "output")]
    _save(helper.make_graph(nodes, "matmul_stack", ends[:1], ends[1:], initializers), path)


def _save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
