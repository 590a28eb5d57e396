"""What pruned weights will take in the file, before they are pruned: for each format, from the share of zeros alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.codec.bits import packed_bytes
from qcompiler.codec.sparse_formats import BITMASK, DELTA, DENSE
from qcompiler.codec.xor_code import REGISTERS, TRELLIS, outputs_for
from qcompiler.quant.sparsity import Curve
from qcompiler.unpacking.encoded import AUTO, F2F, GRAPH_BYTES

RIGHT = 0.987
"""Share of unpruned bits that the default fixed-to-fixed code makes right at the entropy rate; see
``docs/sparse-formats.md``."""
STRIDE = 255
"""Places that a byte of gaps passes over at most."""


def sparse_bytes(weights: int, zeros: int, bits: int, form: str = AUTO) -> int:
    """Return about how many bytes the codes of a weight take, with the graph that decodes them.

    Args:
        weights: how many numbers it holds.
        zeros: how many of them are 0, anywhere.
        bits: of a code.
        form: name of a sparse format; "auto" is the smallest that it would choose among.
    """
    if form == AUTO:
        return min(sparse_bytes(weights, zeros, bits, name) for name in (DENSE, BITMASK, DELTA))
    kept = weights - zeros
    dense, mask = packed_bytes(weights, bits), packed_bytes(weights, 1)
    if form == BITMASK:
        content = mask + packed_bytes(kept, bits)
    elif form == DELTA:
        content = packed_bytes(_gaps(weights, kept), bits + 8)
    elif form == F2F and zeros < weights:
        outputs = outputs_for(zeros / weights)
        wrong = round(kept * bits * (1 - RIGHT))
        network = outputs * (REGISTERS[TRELLIS] + 1)
        content = mask + bits * -(-weights // outputs) + _gaps(kept * bits, wrong) + network
    else:
        return dense if form != F2F else mask + GRAPH_BYTES[F2F]
    return content + GRAPH_BYTES[form]


def stored_bytes(curves: Sequence[Curve], shares: Mapping[str, float], form: str = AUTO) -> int:
    """Return about how many bytes the codes of all weights take at some shares of zeros."""
    return sum(sparse_bytes(c.weights, int(shares[c.name] * c.weights), c.bits, form) for c in curves)


def _gaps(places: int, marked: int) -> int:
    """Return about how many bytes of gaps lead to ``marked`` of some places, chosen at random."""
    passed = (1 - marked / places) ** STRIDE if places else 0.0
    return marked if passed >= 1 else round(marked / (1 - passed))
