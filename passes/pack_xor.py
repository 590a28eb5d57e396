"""pack-xor: store weights behind an XOR network in their few bits; the runtime decodes them when it loads a session."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec.xor_weights import XorRate
from qcompiler.lowering import weight_of
from qcompiler.model.edit import clone, tensor_array, value_names
from qcompiler.plan import TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.levels import Levels
from qcompiler.records import Metric, PassReport, Skip
from qcompiler.state import Context, Fact, State
from qcompiler.unpacking.encoded import FoldLimits
from qcompiler.unpacking.writer import MIN_OPSET, Unpacker
from qcompiler.unpacking.xor_words import BYTES_A_WEIGHT, LARGEST, from_words


@dataclass(frozen=True, slots=True, eq=False)
class _Word:
    """A constant with the codes of a weight, and the stored bits that make them."""

    value: ir.Value
    stored: NDArray[np.uint8]
    count: int
    levels: Levels


@dataclass(frozen=True, slots=True)
class PackXor:
    """Replaces the int8 codes of weights that are planned behind an XOR network by the bits that the network reads.

    The stored bits are read off the planned codes, and decoded again to compare. ONNX Runtime computes nodes whose
    inputs are all constant when it loads a session, so that it holds and runs the same int8 weights as without this
    pass. Codes that the network does not make stay for ``pack-bits``.
    """

    name: ClassVar[str] = "pack-xor"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph that holds one stream for all weights of a rate instead of their codes."""
        model = clone(state.model)
        opset = model.opset_imports.get("", 0)
        by_rate: dict[XorRate, list[_Word]] = defaultdict(list)
        skipped, taken, limits = [], 0, FoldLimits()
        for graph in model.graphs():
            for value in tuple(graph.initializers.values()):
                entry = state.plan.tensors.get(weight_of(value))
                rate = XorRate.named(entry.encoding) if entry is not None else None
                if entry is None or rate is None or value.const_value is None:
                    continue
                word = _word(value, entry, rate)
                taken += int(value.const_value.size)
                if opset < MIN_OPSET:
                    skipped.append(Skip(entry.name, f"needs opset {MIN_OPSET} or newer"))
                elif word is None:
                    skipped.append(Skip(entry.name, f"stored bit by bit: its codes are not of '{rate.name}'"))
                elif LARGEST * taken > limits.largest_bytes or BYTES_A_WEIGHT * taken > limits.peak_bytes:
                    why = f"decoding would take {BYTES_A_WEIGHT * taken >> 20} MiB at every load"
                    skipped.append(Skip(entry.name, f"stored bit by bit: {why}"))
                else:
                    by_rate[rate].append(word)
        writer = Unpacker(model.graph, value_names(model))
        for rate, words in by_rate.items():
            codes = from_words(writer, rate, [(w.stored, w.count, w.levels) for w in words], opset)
            for word, found in zip(words, codes, strict=True):
                writer.stand_for(word.value, found)
        writer.place()
        report = PassReport(name=self.name, changed=bool(by_rate), metrics=_metrics(by_rate), skipped=tuple(skipped))
        return PassResult(replace(state, model=model) if by_rate else state, report)


def _word(value: ir.Value, entry: TensorPlan, rate: XorRate) -> _Word | None:
    """Return the stored bits of a constant's codes, None if no stored bits make them."""
    levels = entry.levels
    if levels is None or levels.size != 2 or value.const_value is None:
        return None
    codes = tensor_array(value.const_value).reshape(-1)
    if not np.isin(codes, levels).all():
        return None
    stored = rate.stored_bits((codes == levels[1]).astype(np.uint8))
    return None if stored is None else _Word(value, stored, codes.size, levels)


def _metrics(by_rate: dict[XorRate, list[_Word]]) -> tuple[Metric, ...]:
    words = [word for found in by_rate.values() for word in found]
    stored = sum(rate.streams(w.stored).size for rate, found in by_rate.items() for w in found)
    return (
        Metric("packed", len(words), "tensors"),
        Metric("weights", sum(w.count for w in words), ""),
        Metric("stored", stored, "bytes"),
    )
