"""What bits are worth in every kind of sublayer, from what is predicted for its weights."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.model.sublayers import DECODER, ENCODER, KINDS
from qcompiler.quant.allocation import Item
from qcompiler.quant.frontier import BitSearch
from qcompiler.records import Table, TableRow

WIDTHS = (4, 3, 2, 1)
"""Bits at which every sublayer is compared."""
_COLUMNS = ("weights", "share of weights", "chosen bits", "predicted loss", *(f"loss at {bits}" for bits in WIDTHS))


def sublayer_table(search: BitSearch, kinds: Mapping[str, str]) -> Table:
    """Return a row for every kind of sublayer: its size, its mean bits, and its predicted loss, also at other widths.

    The loss at a width is that of the whole kind of sublayer with that width alone, everything else in float, as the
    sum of what is predicted for its weights; None where one of them cannot take the width.

    Source: Chung et al. 2020, Extremely Low Bit Transformer Quantization for On-Device Neural Machine Translation
    (arXiv:2009.07453), section 4, whose sensitivity of one sublayer kind at a time this is. Differs: the loss is
    predicted from one run a weight instead of measured as BLEU.

    Args:
        search: what was chosen, and from what.
        kinds: weight -> sublayer.
    """
    whole = sum(item.weights for item in search.items)
    rows = []
    for kind in sorted({kinds.get(item.name, "other") for item in search.items}, key=_order):
        chosen = [
            (item, bits)
            for item, bits in zip(search.items, search.chosen.bits, strict=True)
            if kinds.get(item.name, "other") == kind
        ]
        rows.append(TableRow(kind, _values(chosen, whole)))
    return Table("bits by sublayer", search.unit, _COLUMNS, tuple(rows))


def _order(kind: str) -> tuple[int, int]:
    part, _, bare = kind.rpartition(" ")
    return ("", ENCODER, DECODER).index(part), KINDS.index(bare)


def _values(chosen: list[tuple[Item, int]], whole: int) -> tuple[float | None, ...]:
    count = sum(item.weights for item, _ in chosen)
    bits = sum(item.weights * bits for item, bits in chosen) / max(count, 1)
    loss = sum(item.loss_at(bits) for item, bits in chosen)
    others = []
    for width in WIDTHS:
        able = all(width in item.bits for item, _ in chosen)
        others.append(_rounded(sum(item.loss_at(width) for item, _ in chosen)) if able else None)
    return count, round(count / max(whole, 1), 4), round(bits, 3), _rounded(loss), *others


def _rounded(loss: float) -> float:
    return float(f"{loss:.4g}")
