"""What ONNX Runtime's CPU provider really runs on quantized data, as a typed table.

The rows were found by compiling one-operator graphs and reading the optimized graph; a test repeats that
against the installed ONNX Runtime, because fusion rules change between releases. Activations are unsigned
everywhere: signed ones leave residual networks in float on x86.
"""

from __future__ import annotations

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal

U8 = QuantSpec(num_bits=8, signed=False)
S8 = QuantSpec(num_bits=8, signed=True, symmetric=True)
S8_CHANNEL = QuantSpec(num_bits=8, signed=True, symmetric=True, axis=0)


def _compute(op_type: str, runtime_op: str, *, output: bool = True) -> OpRule:
    return OpRule(
        op_type=op_type,
        precision=Precision.INTEGER,
        weights=(S8_CHANNEL, S8),
        activations=(U8,),
        output=output,
        runtime_op=runtime_op,
    )


def _light(op_type: str, runtime_op: str, needs: str = "") -> OpRule:
    return OpRule(op_type=op_type, precision=Precision.INTEGER, activations=(U8,), runtime_op=runtime_op, needs=needs)


def _move(op_type: str, needs: str = "") -> OpRule:
    return OpRule(op_type=op_type, precision=Precision.MOVE, activations=(U8,), runtime_op=op_type, needs=needs)


ORT_CPU_RULES: tuple[OpRule, ...] = (
    _compute("Conv", "QLinearConv"),
    _compute("Gemm", "QGemm", output=False),
    _compute("MatMul", "QLinearMatMul", output=False),
    OpRule(
        op_type="MatMul",
        precision=Precision.DYNAMIC,
        weights=(S8_CHANNEL, S8),
        runtime_op="DynamicQuantizeMatMul",
        output=False,
    ),
    _light("Add", "QLinearAdd", "two computed inputs"),
    _light("Mul", "QLinearMul", "two computed inputs"),
    _light("Concat", "QLinearConcat"),
    _light("AveragePool", "QLinearAveragePool"),
    _light("GlobalAveragePool", "QLinearGlobalAveragePool"),
    _light("Sigmoid", "QLinearSigmoid"),
    _light("LeakyRelu", "QLinearLeakyRelu"),
    _move("MaxPool"),
    _move("Reshape"),
    _move("Flatten"),
    _move("Squeeze"),
    _move("Unsqueeze"),
    _move("Transpose"),
    _move("Slice"),
    _move("Gather"),
    _move("Resize", "nearest"),
    _move("Pad", "constant zero"),
)

FUSED_ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Activations that vanish when the output grid of the node before them ends where they cut."""

FLOAT_REASONS: dict[str, str] = {
    "Softmax": "quantized Softmax is slower and loses small probabilities",
    "LayerNormalization": "no integer kernel in ONNX Runtime",
    "Gelu": "no integer kernel in ONNX Runtime",
    "ReduceMean": "no integer kernel in ONNX Runtime",
    "HardSwish": "no integer kernel in ONNX Runtime",
    "ConvTranspose": "no integer kernel in ONNX Runtime; weights are stored in integers",
}


def find_rule(
    rules: tuple[OpRule, ...], op_type: str, wanted: Precision, weights: QuantSpec | None
) -> OpRule | Refusal:
    """Return the table row by which an operator runs in the wanted precision, or why there is none.

    Args:
        rules: a target's table.
        op_type: ONNX operator type.
        wanted: INTEGER, MOVE or DYNAMIC.
        weights: grid of the constant operand, or None.
    """
    for rule in rules:
        if rule.op_type != op_type or (rule.precision is Precision.DYNAMIC) != (wanted is Precision.DYNAMIC):
            continue
        if weights is not None and not any(_fits(weights, allowed) for allowed in rule.weights):
            runs = ", ".join(g.describe() for g in rule.weights) or "none"
            return Refusal(f"{op_type} with {weights.describe()} weights has no integer kernel; it has {runs}")
        return rule
    if wanted is Precision.DYNAMIC:
        return Refusal(f"the target has no integer kernel with run-time activation scales for {op_type}")
    return Refusal(FLOAT_REASONS.get(op_type, f"the target runs {op_type} in float only"))


def _fits(weights: QuantSpec, allowed: QuantSpec) -> bool:
    same_grid = (weights.num_bits, weights.signed) == (allowed.num_bits, allowed.signed)
    return same_grid and (weights.axis is None) == (allowed.axis is None)
