"""Sparse weights of large layers: memory grows with the weights by little, and sessions decode them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.codec.sparse_formats import BITMASK, DELTA
from qcompiler.model.save import to_proto
from qcompiler.runtime.sessions import open_session
from qcompiler.unpacking import encoded
from qcompiler.unpacking.encoded import FoldLimits, SparseWeight
from qcompiler.unpacking.numbering import numbering
from qcompiler.unpacking.writer import Unpacker

BYTES_A_WEIGHT = {0.5: 30, 0.9: 12}
"""Share of zeros -> most bytes that choosing and making a format takes, for each weight of 8 bits."""
LARGE = 100_000_000


def codes(count: int, sparsity: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    numbers = rng.integers(1, 256, count, np.uint8)
    numbers[rng.random(count, np.float32) < sparsity] = 0
    return numbers


def decoded(weight: SparseWeight, form: str) -> np.ndarray:
    """Return the codes that a session decodes."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="large")
    writer = Unpacker(graph, set())
    (found,), _ = encoded.decoded(writer, form, [weight], 17)
    graph.extend(writer.nodes)
    found.type, found.shape = ir.TensorType(ir.DataType.INT8), ir.Shape([weight.numbers.size])
    graph.outputs.append(found)
    model = ir.Model(graph, ir_version=8)
    return open_session(to_proto(model).SerializeToString()).run(None, {})[0]


@pytest.mark.parametrize("sparsity", sorted(BYTES_A_WEIGHT))
def test_memory_is_bounded_by_the_weights(sparsity):
    numbers = codes(1_000_000, sparsity)
    tracemalloc.start()
    try:
        weight = SparseWeight("w", numbers, numbering(8, None))
        for form in (BITMASK, DELTA):
            assert weight.zipped_as(form) > 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BYTES_A_WEIGHT[sparsity] * numbers.size


@pytest.mark.parametrize("count", [1_000_003, pytest.param(LARGE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", [BITMASK, DELTA])
def test_a_session_decodes_large_weights(count, form):
    numbers = codes(count, 0.9)
    weight = SparseWeight("w", numbers, numbering(8, None))
    assert weight.fits(form, FoldLimits(), 0)
    assert np.array_equal(decoded(weight, form).view(np.uint8), numbers)


@pytest.mark.parametrize(("form", "weights"), [(BITMASK, 250_000_000), (DELTA, 700_000_000)])
def test_what_takes_too_much_memory_to_decode_is_known_before(form, weights):
    """By the reckoning alone: nothing of that size is made."""
    few = SparseWeight("w", codes(1000, 0.9), numbering(8, None))
    largest, together = (weights // 1000 * n for n in few.load_bytes(form))
    limits = FoldLimits()
    assert largest > limits.largest_bytes or together > limits.peak_bytes
