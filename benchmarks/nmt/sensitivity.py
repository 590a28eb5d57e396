"""What each kind of sublayer loses when it alone has few bits, and what whole assignments lose, on the val part.

Source: Chung et al., "Extremely Low Bit Transformer Quantization for On-Device Neural Machine Translation" (Findings
of EMNLP 2020), section 4. Differs: rows are rounded to uniform levels (the better of two kinds, the best of eight clips
a row) instead of binary codes, and judged by the cross-entropy of a token, which tells assignments apart that BLEU on a
thousand sentences does not.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.nmt.__main__ import default_cache
from benchmarks.nmt.corpus import encode, read_part
from benchmarks.nmt.network import Translator
from benchmarks.nmt.training import Schedule, subwords, trained, validation_loss
from benchmarks.readers import Array
from benchmarks.tables import markdown_table
from qcompiler.quant.width_error import round_rows

KINDS = {
    "embedding": r"^table",
    "encoder self-attention": r"^encoder\.\d+\.self_attention",
    "encoder feed-forward": r"^encoder\.\d+\.feed_forward",
    "decoder self-attention": r"^decoder\.\d+\.self_attention",
    "decoder cross-attention": r"^decoder\.\d+\.cross_attention",
    "decoder feed-forward": r"^decoder\.\d+\.feed_forward",
}
"""Kind of sublayer -> its weights, by their names in the network."""
WIDTHS = (4, 3, 2, 1)
CLUSTERS = (4, 3, 2, 1)
"""Bits of as many equal parts of the vocabulary, the most frequent first: the paper's b = 4, r = 1."""

Bits = Mapping[str, int | tuple[int, ...]]
"""Kind -> bits, or the bits of equal parts of the vocabulary by frequency; kinds that are missing stay in float."""

PAPER: Bits = {
    "embedding": CLUSTERS,
    "encoder self-attention": 3,
    "encoder feed-forward": 4,
    "decoder self-attention": 2,
    "decoder cross-attention": 3,
    "decoder feed-forward": 1,
}


def rounded(network: Translator, bits: Bits, order: Array) -> tuple[Translator, int]:
    """Return a copy of a network with rounded weights, and the bits of all rounded weights together.

    Args:
        network: the float network.
        bits: by kind of sublayer.
        order: int64 (vocabulary,), entries by falling frequency.
    """
    found, total = copy.deepcopy(network), 0
    for name, parameter in found.named_parameters():
        kind = next((k for k, pattern in KINDS.items() if re.search(pattern, name)), "")
        if parameter.dim() != 2 or kind not in bits:
            continue
        rows, width = parameter.detach().numpy(), bits[kind]
        parts = np.array_split(order, len(width)) if isinstance(width, tuple) else [np.arange(len(rows))]
        for part, own in zip(parts, width if isinstance(width, tuple) else (width,), strict=True):
            values = round_rows(np.ascontiguousarray(rows[part]), None, own).values
            with torch.no_grad():
                parameter[torch.from_numpy(part)] = torch.from_numpy(values)
            total += own * values.size
    return found, total


def frequency_order(lines: Sequence[Sequence[int]], vocabulary: int) -> Array:
    """Return the entries of a vocabulary by how often they are in some lines, the most frequent first."""
    counts = np.bincount(np.concatenate([np.asarray(line) for line in lines]), minlength=vocabulary)
    return np.argsort(-counts, kind="stable")


def sensitivity_table(network: Translator, held: tuple[list[list[int]], list[list[int]]], order: Array) -> str:
    """Return how much the cross-entropy of a token rises, in nats, by kind of sublayer and bits, as a table."""
    base = validation_loss(network, *held)

    def rise(bits: Bits) -> str:
        return f"{validation_loss(rounded(network, bits, order)[0], *held) - base:+.4f}"

    sizes = {kind: _size(network, pattern) for kind, pattern in KINDS.items()}
    rows = [(kind, f"{sizes[kind] / 1e6:.2f}", *(rise({kind: width}) for width in WIDTHS)) for kind in KINDS]
    rows.append(("all of them", f"{sum(sizes.values()) / 1e6:.2f}", *(rise(dict.fromkeys(KINDS, w)) for w in WIDTHS)))
    table = markdown_table(("rounded alone", "million weights", *(f"{width} bits" for width in WIDTHS)), rows)
    mean = rounded(network, PAPER, order)[1] / sum(sizes.values())
    return f"Float: {base:.4f} nats a token.\n\n{table}\nThe paper's bits, {mean:.2f} on average: {rise(PAPER)} nats.\n"


def _size(network: Translator, pattern: str) -> int:
    return sum(p.numel() for name, p in network.named_parameters() if p.dim() == 2 and re.search(pattern, name))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the trained network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nmt.sensitivity", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that has text/multi30k")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="as of benchmarks.nmt")
    parser.add_argument("--lines", type=int, default=1014, help="of the val part, spread; default: %(default)s")
    given = parser.parse_args(argv)
    network, _ = trained(given.data, given.cache, Schedule())
    tokenizer = subwords(given.data, given.cache)
    train, val = read_part(given.data, "train"), read_part(given.data, "val")
    counted = [encode(tokenizer, side) for side in (train.source, train.target)]
    order = frequency_order([*counted[0], *counted[1]], network.shape.vocabulary)
    every = max(len(val.source) // given.lines, 1)
    held = tuple(encode(tokenizer, side[::every][: given.lines]) for side in (val.source, val.target))
    print(f"On {len(held[0])} lines of val. {sensitivity_table(network, (held[0], held[1]), order)}")


if __name__ == "__main__":
    main()
