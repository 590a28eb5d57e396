"""What ONNX Runtime's CPU provider really runs on quantized data, as a typed table.

The rows were found by compiling one-operator graphs and reading the optimized graph; a test repeats that
against the installed ONNX Runtime, because fusion rules change between releases. Activations are unsigned
everywhere: signed ones leave residual networks in float on x86.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal

U8 = QuantSpec(num_bits=8, signed=False)
S8 = QuantSpec(num_bits=8, signed=True, symmetric=True)
S8_CHANNEL = QuantSpec(num_bits=8, signed=True, symmetric=True, axis=0)

WEIGHT_BITS = frozenset({8})
"""Widths of weights."""
ACTIVATION_BITS = frozenset({4, 8})
"""Widths of activations; codes of 4 bits are 8-bit codes that a Clip keeps below 16."""


def compute_row(op_type: str, runtime_op: str, *, output: bool = True, activations: QuantSpec = U8) -> OpRule:
    """Return the row of an operator with 8-bit weights, signed and symmetric, per channel or per tensor."""
    return OpRule(
        op_type=op_type,
        precision=Precision.INTEGER,
        weights=(S8_CHANNEL, S8),
        activations=(activations,),
        output=output,
        runtime_op=runtime_op,
    )


def light_row(op_type: str, runtime_op: str, needs: str = "", *, activations: QuantSpec = U8) -> OpRule:
    """Return the row of an operator without weights that has an integer kernel."""
    return OpRule(
        op_type=op_type, precision=Precision.INTEGER, activations=(activations,), runtime_op=runtime_op, needs=needs
    )


def move_row(op_type: str, needs: str = "", *, activations: QuantSpec = U8) -> OpRule:
    """Return the row of an operator that only moves quantized data."""
    return OpRule(
        op_type=op_type, precision=Precision.MOVE, activations=(activations,), runtime_op=op_type, needs=needs
    )


ORT_CPU_RULES: tuple[OpRule, ...] = (
    compute_row("Conv", "QLinearConv"),
    compute_row("Gemm", "QGemm", output=False),
    compute_row("MatMul", "QLinearMatMul", output=False),
    OpRule(
        op_type="MatMul",
        precision=Precision.DYNAMIC,
        weights=(S8_CHANNEL, S8),
        runtime_op="DynamicQuantizeMatMul",
        output=False,
    ),
    light_row("Add", "QLinearAdd", "two computed inputs"),
    light_row("Mul", "QLinearMul", "two computed inputs"),
    light_row("Concat", "QLinearConcat"),
    light_row("AveragePool", "QLinearAveragePool"),
    light_row("GlobalAveragePool", "QLinearGlobalAveragePool"),
    light_row("Sigmoid", "QLinearSigmoid"),
    light_row("LeakyRelu", "QLinearLeakyRelu"),
    move_row("MaxPool"),
    move_row("Reshape"),
    move_row("Flatten"),
    move_row("Squeeze"),
    move_row("Unsqueeze"),
    move_row("Transpose"),
    move_row("Slice"),
    move_row("Gather"),
    move_row("Resize", "nearest"),
    move_row("Pad", "constant zero"),
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
    rules: tuple[OpRule, ...],
    op_type: str,
    wanted: Precision,
    weights: QuantSpec | None,
    reasons: Mapping[str, str] = FLOAT_REASONS,
) -> OpRule | Refusal:
    """Return the table row by which an operator runs in the wanted precision, or why there is none.

    Args:
        rules: a target's table.
        op_type: ONNX operator type.
        wanted: INTEGER, MOVE or DYNAMIC.
        weights: grid of the constant operand, or None.
        reasons: operator -> why it has no row, where there is more to say than that.
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
    return Refusal(reasons.get(op_type, f"the target runs {op_type} in float only"))


def _fits(weights: QuantSpec, allowed: QuantSpec) -> bool:
    """Return whether codes of one grid are codes of another; those of narrower grids are."""
    held = weights.num_bits <= allowed.num_bits and weights.signed == allowed.signed
    return held and (weights.axis is None) == (allowed.axis is None)
