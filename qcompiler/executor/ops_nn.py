"""Layers: convolution, matrix product, normalization, softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as nn
from torch import Tensor

from qcompiler.executor.operator import Kernel, Maker, Operator, plain

CONVOLUTIONS = {1: nn.conv1d, 2: nn.conv2d, 3: nn.conv3d}
TRANSPOSED = {1: nn.conv_transpose1d, 2: nn.conv_transpose2d, 3: nn.conv_transpose3d}


def same_padding(sizes: list[int], kernel: list[int], strides: list[int], upper: bool) -> list[int]:
    """Return begin and end padding, begins first, that makes ceil(size / stride) outputs.

    Args:
        sizes: spatial sizes of the input.
        kernel: spatial sizes of the kernel, dilation included.
        strides: of the kernel.
        upper: an odd rest goes to the end.
    """
    wanted = zip(sizes, kernel, strides, strict=True)
    totals = [max((-(-size // stride) - 1) * stride + width - size, 0) for size, width, stride in wanted]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return [*less, *more] if upper else [*more, *less]


def torch_padding(pads: list[int]) -> list[int]:
    """Return ONNX padding (all begins, then all ends) in the order of ``torch.nn.functional.pad``."""
    rank = len(pads) // 2
    return [side for axis in reversed(range(rank)) for side in (pads[axis], pads[rank + axis])]


def blocked(x: Tensor) -> Tensor:
    """Return an image tensor with its channels innermost on a CPU, where convolution and pooling are faster so."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and x.device.type == "cpu" else x


def _conv(op: Operator) -> Kernel | None:
    pads, auto, group = op.integers("pads"), op.text("auto_pad", "NOTSET"), op.integer("group", 1)
    strides, dilations = op.integers("strides"), op.integers("dilations")

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.dim() - 2
        step, spread = strides or [1] * rank, dilations or [1] * rank
        padding = list(pads or [0] * (2 * rank))
        if auto.startswith("SAME"):
            widths = [(size - 1) * d + 1 for size, d in zip(weight.shape[2:], spread, strict=True)]
            padding = same_padding(list(x.shape[2:]), widths, step, auto == "SAME_UPPER")
        elif auto == "VALID":
            padding = [0] * (2 * rank)
        if padding[:rank] != padding[rank:]:
            x, padding = nn.pad(x, torch_padding(padding)), [0] * rank
        x = blocked(x)
        return CONVOLUTIONS[rank](x, weight, bias, step, padding[:rank], spread, group)

    return kernel


def _conv_transpose(op: Operator) -> Kernel | None:
    pads, group = op.integers("pads"), op.integer("group", 1)
    strides, dilations, extra = op.integers("strides"), op.integers("dilations"), op.integers("output_padding")
    if op.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or op.integers("output_shape") is not None:
        return None

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = x.dim() - 2
        step, spread, more = strides or [1] * rank, dilations or [1] * rank, extra or [0] * rank
        padding = list(pads or [0] * (2 * rank))
        y = TRANSPOSED[rank](x, weight, None, step, 0, 0, group, spread)
        # Padding is cut off here: begin and end may differ, and what is added may exceed the stride.
        y = nn.pad(y, torch_padding([0] * rank + more))
        for axis in range(rank):
            y = y.narrow(2 + axis, padding[axis], y.shape[2 + axis] - padding[axis] - padding[rank + axis])
        return y if bias is None else y + bias.reshape(1, -1, *[1] * rank)

    return kernel


def _gemm(op: Operator) -> Kernel:
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    first, second = bool(op.integer("transA", 0)), bool(op.integer("transB", 0))

    def kernel(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = (a.t() if first else a), (b.t() if second else b)
        if c is None:
            return alpha * (a @ b) if alpha != 1.0 else a @ b
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return kernel


def _batch_normalization(op: Operator) -> Kernel | None:
    epsilon = op.number("epsilon", 1e-5)
    if op.outputs > 1 or op.integer("training_mode", 0) or not op.integer("spatial", 1):
        return None

    def kernel(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        if mean.requires_grad or variance.requires_grad:  # PyTorch has no gradient for these
            factor = scale * torch.rsqrt(variance + epsilon)
            shape = (1, -1, *[1] * (x.dim() - 2))
            return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
        return nn.batch_norm(x, mean, variance, scale, bias, eps=epsilon)

    return kernel


def _instance_normalization(op: Operator) -> Kernel:
    epsilon = op.number("epsilon", 1e-5)
    return lambda x, scale, bias: nn.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _group_normalization(op: Operator) -> Kernel | None:
    epsilon, groups = op.number("epsilon", 1e-5), op.integer("num_groups", 1)
    if op.version < 21:  # scale and bias were per group
        return None
    return lambda x, scale, bias: nn.group_norm(x, groups, scale, bias, epsilon)


def _layer_normalization(op: Operator) -> Kernel:
    axis, epsilon, outputs = op.integer("axis", -1), op.number("epsilon", 1e-5), op.outputs

    def kernel(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        first = axis % x.dim()
        normal = nn.layer_norm(x, x.shape[first:], eps=epsilon) * scale
        normal = normal if bias is None else normal + bias
        if outputs == 1:
            return normal
        axes = list(range(first, x.dim()))
        spread = x.var(axes, correction=0, keepdim=True)
        return normal, x.mean(axes, keepdim=True), torch.rsqrt(spread + epsilon)

    return kernel


def _rms_normalization(op: Operator) -> Kernel:
    axis, epsilon = op.integer("axis", -1), op.number("epsilon", 1e-5)

    def kernel(x: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % x.dim(), x.dim()))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    return kernel


def _local_response(op: Operator) -> Kernel:
    size, alpha = op.integer("size", 1), op.number("alpha", 1e-4)
    beta, bias = op.number("beta", 0.75), op.number("bias", 1.0)

    def kernel(x: Tensor) -> Tensor:
        before = (size - 1) // 2
        squares = nn.pad(x.square(), [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
        total = squares.unfold(1, size, 1).sum(-1)
        return x / (bias + alpha / size * total) ** beta

    return kernel


def _softmax(op: Operator) -> Kernel:
    return _normalized(op, torch.softmax)


def _log_softmax(op: Operator) -> Kernel:
    return _normalized(op, torch.log_softmax)


def _normalized(op: Operator, function: Kernel) -> Kernel:
    if op.version >= 13:
        axis = op.integer("axis", -1)
        return lambda x: function(x, axis)
    first = op.integer("axis", 1)

    def kernel(x: Tensor) -> Tensor:
        """Before opset 13 all axes from ``axis`` on were one."""
        rows = int(torch.Size(x.shape[: first % x.dim()]).numel())
        return function(x.reshape(rows, -1), 1).reshape(x.shape)

    return kernel


def _dropout(op: Operator) -> Kernel | None:
    training = len(op.node.inputs) > 2 and op.node.inputs[2] is not None
    return None if training or op.outputs > 1 else lambda x, *_: x


def _einsum(op: Operator) -> Kernel | None:
    equation = op.text("equation", "")
    return lambda *values: torch.einsum(equation, *values)


OPERATORS: dict[str, Maker] = {
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _log_softmax,
    "MatMul": plain(torch.matmul),
    "RMSNormalization": _rms_normalization,
    "Softmax": _softmax,
}
"""Operator -> maker of its kernel."""
