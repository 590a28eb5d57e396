"""Elementwise operators: arithmetic, comparison, logic, activations, types."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as nn
from torch import Tensor

from qcompiler.executor.operator import Kernel, Maker, Operator, plain

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Defaults of the ONNX specification, which are those of float32."""

TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}
"""ONNX types that kernels compute with; nodes that make others are left to ONNX Runtime."""


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b; integers are divided towards zero."""
    return torch.true_divide(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(a: Tensor, b: Tensor) -> Tensor:
    """Return a to the power of b, in the type of a."""
    if a.is_floating_point() and b.numel() == 1 and not b.requires_grad:
        return torch.pow(a, float(b)).reshape(torch.broadcast_shapes(a.shape, b.shape))
    return torch.pow(a, b).to(a.dtype)


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    return plain(lambda *values: functools.reduce(function, values))


def _mean(*values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


def _modulo(op: Operator) -> Kernel:
    function: Kernel = torch.fmod if op.integer("fmod", 0) else torch.remainder
    return function


def _clip(op: Operator) -> Kernel:
    if op.version < 11:
        low, high = op.number("min", -math.inf), op.number("max", math.inf)
        return lambda x: torch.clamp(x, low, high)

    def kernel(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        if low is None and high is None:
            return x
        return torch.clamp(x, low if low is None else low.reshape(()), high if high is None else high.reshape(()))

    return kernel


def _gelu(op: Operator) -> Kernel:
    approximate = op.text("approximate", "none")
    return lambda x: nn.gelu(x, approximate=approximate)


def _hard_sigmoid(op: Operator) -> Kernel:
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


def _selu(op: Operator) -> Kernel:
    alpha, gamma = op.number("alpha", _SELU_ALPHA), op.number("gamma", _SELU_GAMMA)
    return lambda x: gamma * (torch.clamp(x, min=0) + alpha * torch.expm1(torch.clamp(x, max=0)))


def _elu(op: Operator) -> Kernel:
    alpha = op.number("alpha", 1.0)
    return lambda x: nn.elu(x, alpha)


def _celu(op: Operator) -> Kernel:
    alpha = op.number("alpha", 1.0)
    return lambda x: nn.celu(x, alpha)


def _leaky_relu(op: Operator) -> Kernel:
    alpha = op.number("alpha", 0.01)
    return lambda x: nn.leaky_relu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _thresholded_relu(op: Operator) -> Kernel:
    alpha = op.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _swish(op: Operator) -> Kernel:
    alpha = op.number("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _shrink(op: Operator) -> Kernel:
    bias, limit = op.number("bias", 0.0), op.number("lambd", 0.5)

    def kernel(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))

    return kernel


def cast(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor in another type, on the device that its type lives on."""
    return x.to(device=device if dtype.is_floating_point else "cpu", dtype=dtype)


def _cast(op: Operator) -> Kernel | None:
    dtype = TYPES.get(ir.DataType(op.integer("to", 1)))
    return None if dtype is None else lambda x: cast(x, dtype, op.device)


def _cast_like(op: Operator) -> Kernel:
    return lambda x, like: cast(x, like.dtype, op.device)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.to(a.device), a, b)


def _is_inf(op: Operator) -> Kernel:
    negative, positive = bool(op.integer("detect_negative", 1)), bool(op.integer("detect_positive", 1))
    return lambda x: (torch.isneginf(x) & negative) | (torch.isposinf(x) & positive)


def _constant(op: Operator) -> Kernel | None:
    value: Any = op.tensor("value") if "value" in op.node.attributes else None
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in op.node.attributes:
            value = torch.tensor(op.node.attributes[name].value)
    if value is None:
        return None
    value = value.to(op.device) if value.is_floating_point() else value
    return lambda: value


UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log, "Neg": torch.neg,
    "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Sqrt": torch.sqrt,
    "Tan": torch.tan, "Tanh": torch.tanh, "Softsign": nn.softsign, "HardSwish": nn.hardswish,
    "IsNaN": torch.isnan, "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "Mish": lambda x: x * torch.tanh(nn.softplus(x)), "Identity": lambda x: x,
}  # fmt: skip

BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": divide, "Pow": power,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
    "PRelu": _prelu,
}  # fmt: skip

OPERATORS: dict[str, Maker] = {
    **{name: plain(function) for name, function in (UNARY | BINARY).items()},
    "BitwiseNot": plain(torch.bitwise_not),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _celu,
    "Clip": _clip,
    "Constant": _constant,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu,
    "Max": _variadic(torch.maximum),
    "Mean": plain(_mean),
    "Min": _variadic(torch.minimum),
    "Mod": _modulo,
    "Selu": _selu,
    "Shrink": _shrink,
    "Sum": _variadic(torch.add),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
    "Where": plain(_where),
}
"""Operator -> maker of its kernel."""
