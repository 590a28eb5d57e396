"""What pruned weights will take in the file, before they are pruned: for each format, from the share of zeros alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.codec.bits import packed_bytes
from qcompiler.codec.sparse_formats import BITMASK, DELTA, DENSE
from qcompiler.codec.xor_code import REGISTERS, TRELLIS, outputs_for
from qcompiler.quant.sparsity import Curve
from qcompiler.unpacking.encoded import AUTO, EACH_BYTES, ONCE_BYTES, smallest_together

RIGHT = 0.987
"""Share of unpruned bits that the default fixed-to-fixed code makes right at the entropy rate; see
``docs/sparse-formats.md``."""
STRIDE = 255
"""Places that a byte of gaps passes over at most."""


def sparse_bytes(weights: int, zeros: int, bits: int, form: str) -> int:
    """Return about how many bytes the codes of a weight take, without the graph that decodes them.

    Args:
        weights: how many numbers it holds.
        zeros: how many of them are 0, anywhere.
        bits: of a code.
        form: name of a sparse format other than "auto".
    """
    kept = weights - zeros
    dense, mask = packed_bytes(weights, bits), packed_bytes(weights, 1)
    if form == BITMASK:
        return mask + packed_bytes(kept, bits)
    if form == DELTA:
        return packed_bytes(_gaps(weights, kept), bits + 8)
    if form == DENSE:
        return dense
    if not kept:
        return mask
    outputs = outputs_for(zeros / weights)
    wrong = round(kept * bits * (1 - RIGHT))
    network = outputs * (REGISTERS[TRELLIS] + 1)
    return mask + bits * -(-weights // outputs) + _gaps(kept * bits, wrong) + network


def stored_bytes(curves: Sequence[Curve], shares: Mapping[str, float], form: str = AUTO) -> int:
    """Return about how many bytes the codes of all weights take at some shares of zeros, decoding included.

    Args:
        curves: of the weights.
        shares: of zeros, by weight.
        form: name of a sparse format; "auto" is the smallest that it would choose among.
    """
    formats = (DENSE, BITMASK, DELTA) if form == AUTO else (form,)
    total = 0
    for bits in {c.bits for c in curves}:
        weights = [(c.weights, int(shares[c.name] * c.weights)) for c in curves if c.bits == bits]
        sizes = [{name: sparse_bytes(*weight, bits, name) for name in formats} for weight in weights]
        chosen = smallest_together(sizes) if form == AUTO else [form] * len(sizes)
        total += sum(size[name] + EACH_BYTES[name] for size, name in zip(sizes, chosen, strict=True))
        total += sum(ONCE_BYTES[name] for name in set(chosen))
    return total


def _gaps(places: int, marked: int) -> int:
    """Return about how many bytes of gaps lead to ``marked`` of some places, chosen at random."""
    passed = (1 - marked / places) ** STRIDE if places else 0.0
    return marked if passed >= 1 else round(marked / (1 - passed))
