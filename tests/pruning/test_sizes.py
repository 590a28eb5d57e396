"""The predicted size of sparse weights, against what the formats really take."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.codec.fixed_to_fixed import encrypt
from qcompiler.codec.sparse_formats import BITMASK, DELTA, DENSE
from qcompiler.codec.xor_code import XorCode, outputs_for
from qcompiler.pruning.sizes import sparse_bytes, stored_bytes
from qcompiler.quant.sparsity import SHARES, Curve
from qcompiler.unpacking.encoded import EACH_BYTES, F2F, ONCE_BYTES, SparseWeight, smallest_together
from qcompiler.unpacking.numbering import numbering

COUNT = 20_000


def weight(sparsity: float, bits: int) -> SparseWeight:
    rng = np.random.default_rng(int(100 * sparsity) + bits)
    numbers = rng.integers(1, 2**bits, COUNT).astype(np.uint8)
    numbers[rng.random(COUNT) < sparsity] = 0
    levels = None if bits == 8 else np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8)
    return SparseWeight("w", numbers, numbering(bits, levels))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("form", [DENSE, BITMASK, DELTA])
def test_content_is_predicted(form, sparsity, bits):
    found = weight(sparsity, bits)
    zeros = int((found.numbers == 0).sum())
    predicted = sparse_bytes(COUNT, zeros, bits, form)
    assert predicted == pytest.approx(found.bytes_as(form), rel=0.02, abs=8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
def test_fixed_to_fixed_streams_are_predicted(sparsity, bits):
    found = weight(sparsity, bits)
    zeros = int((found.numbers == 0).sum())
    found.streams = encrypt(found.numbers, bits, XorCode("1-12", outputs_for(zeros / COUNT)))
    predicted = sparse_bytes(COUNT, zeros, bits, F2F)
    assert predicted == pytest.approx(found.bytes_as(F2F), rel=0.06)


def curves(*counts: int) -> tuple[list[Curve], list[str]]:
    names = [f"w{k}" for k in range(len(counts))]
    return [Curve(name=n, weights=c, bits=8, errors=tuple(SHARES)) for n, c in zip(names, counts, strict=True)], names


def test_auto_is_the_smallest_that_auto_would_take():
    found, (name,) = curves(COUNT)
    for sparsity in (0.02, 0.6, 0.97):
        sizes = [stored_bytes(found, {name: sparsity}, form) for form in (DENSE, BITMASK, DELTA)]
        assert stored_bytes(found, {name: sparsity}) == min(sizes) < stored_bytes(found, {name: sparsity}, F2F)


def test_what_decodes_comes_once_for_all_weights():
    (alone, names), (many, every) = curves(600), curves(*[600] * 10)
    assert stored_bytes(alone, {names[0]: 0.7}) == 600
    assert stored_bytes(many, dict.fromkeys(every, 0.7)) < 10 * 600 - 1000
    each = {DENSE: 600, BITMASK: 75 + 180}
    assert smallest_together([each]) == [DENSE]
    assert smallest_together([each] * 10) == [BITMASK] * 10
    both = [*[each] * 10, {DENSE: 9000, BITMASK: 2000, DELTA: 2000 - ONCE_BYTES[DELTA] + 50}]
    assert smallest_together(both)[-1] == BITMASK


@pytest.mark.parametrize("form", [DENSE, BITMASK, DELTA, F2F, "auto"])
@pytest.mark.parametrize(("weights", "zeros"), [(1, 0), (1, 1), (9, 8), (100, 100)])
def test_small_and_empty_weights_have_a_size(weights, zeros, form):
    found, (name,) = curves(weights)
    assert stored_bytes(found, {name: zeros / weights}, form) > 0


def test_the_form_that_is_asked_for_counts():
    found, names = curves(COUNT, COUNT)
    shares = dict(zip(names, (0.5, 0.9), strict=True))
    sizes = {form: stored_bytes(found, shares, form) for form in ("auto", F2F, BITMASK)}
    assert sizes["auto"] < sizes[BITMASK] < sizes[F2F]
    contents = (sparse_bytes(COUNT, int(s * COUNT), 8, F2F) for s in shares.values())
    assert sizes[F2F] == sum(contents) + 2 * EACH_BYTES[F2F]
