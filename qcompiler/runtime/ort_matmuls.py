"""What the forms of products cost in ONNX Runtime, over the float product: printed by ``benchmarks/matmuls.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.plan import Precision
from qcompiler.protocols import MatMulCost, MatMulForm

IN_INTEGERS = 4
"""The accuracy level of MatMulNBits that computes in integers."""
DYNAMIC, STATIC = MatMulForm(Precision.DYNAMIC), MatMulForm(Precision.INTEGER)


def blockwise(num_bits: int, block_size: int) -> MatMulForm:
    """Return the blockwise form that computes in integers."""
    return MatMulForm(Precision.BLOCKWISE, num_bits, block_size, IN_INTEGERS)


def cost_points(
    points: Sequence[tuple[int, int]], ratios: Mapping[MatMulForm, Sequence[float]]
) -> tuple[MatMulCost, ...]:
    """Return measured points.

    Args:
        points: (rows, inputs) of products with as many outputs as inputs.
        ratios: form -> cost over that of the float product, for every point.
    """
    return tuple(
        MatMulCost(form, rows, width * width, ratio)
        for form, figures in ratios.items()
        for (rows, width), ratio in zip(points, figures, strict=True)
    )


X86_POINTS = tuple((rows, width) for rows in (1, 4, 8, 32, 128) for width in (384, 1024, 2048))
X86_COSTS = cost_points(
    X86_POINTS,
    {
        DYNAMIC: (0.79, 0.39, 0.30, 0.65, 0.49, 0.34, 0.51, 0.38, 0.24, 0.37, 0.27, 0.25, 0.34, 0.26, 0.26),
        STATIC: (0.87, 0.40, 0.27, 0.73, 0.40, 0.26, 0.53, 0.32, 0.22, 0.37, 0.26, 0.26, 0.31, 0.25, 0.27),
        blockwise(2, 32): (0.91, 0.55, 0.22, 1.50, 1.26, 0.56, 1.48, 1.33, 0.77, 1.72, 1.40, 1.19, 1.70, 1.40, 1.37),
        blockwise(2, 128): (0.68, 0.26, 0.10, 0.94, 0.54, 0.22, 0.89, 0.55, 0.29, 0.96, 0.55, 0.47, 0.94, 0.55, 0.53),
        blockwise(4, 32): (0.71, 0.36, 0.19, 0.96, 0.71, 0.36, 0.92, 0.74, 0.44, 0.95, 0.77, 0.66, 0.93, 0.76, 0.73),
        blockwise(4, 128): (0.60, 0.28, 0.15, 0.79, 0.54, 0.26, 0.73, 0.55, 0.29, 0.76, 0.54, 0.45, 0.72, 0.54, 0.51),
        blockwise(8, 32): (0.68, 0.41, 0.25, 0.90, 0.69, 0.39, 0.83, 0.69, 0.43, 0.87, 0.70, 0.59, 0.84, 0.66, 0.64),
        blockwise(8, 128): (0.53, 0.30, 0.18, 0.75, 0.54, 0.30, 0.69, 0.52, 0.33, 0.70, 0.50, 0.43, 0.67, 0.49, 0.48),
    },
)
"""Latency on an AMD EPYC with AVX512-VNNI, ONNX Runtime 1.31, one thread."""

ARM_POINTS = ((1, 1024), (32, 1024))
WIDENING_COSTS = cost_points(
    ARM_POINTS,
    {
        DYNAMIC: (0.89, 0.82),
        STATIC: (0.89, 0.81),
        blockwise(2, 128): (54.42, 3.56),
        blockwise(4, 32): (5.95, 1.21),
        blockwise(4, 128): (5.37, 1.21),
        blockwise(8, 32): (34.37, 2.60),
        blockwise(8, 128): (31.74, 2.48),
    },
)
"""Instructions on an emulated Cortex-A72: a count knows nothing of memory, so it is no time."""
DOT_PRODUCT_COSTS = cost_points(
    ARM_POINTS,
    {
        DYNAMIC: (0.60, 0.32),
        STATIC: (0.60, 0.32),
        blockwise(2, 128): (1.13, 1.04),
        blockwise(4, 32): (0.70, 0.39),
        blockwise(4, 128): (0.58, 0.35),
        blockwise(8, 32): (0.60, 0.63),
        blockwise(8, 128): (0.44, 0.43),
    },
)
"""The same on a Cortex-A76."""
I8MM_COSTS = cost_points(
    ARM_POINTS,
    {
        DYNAMIC: (0.50, 0.20),
        STATIC: (0.51, 0.20),
        blockwise(2, 128): (1.13, 1.04),
        blockwise(4, 32): (0.74, 0.31),
        blockwise(4, 128): (0.60, 0.25),
        blockwise(8, 32): (0.55, 0.57),
        blockwise(8, 128): (0.43, 0.41),
    },
)
"""The same on a core with 8-bit matrix instructions."""
