"""sparse-encode: store pruned weights without their zeros; the runtime puts them back when it loads a session."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qcompiler.codec import jit
from qcompiler.codec.f2f_file import from_bytes, to_bytes
from qcompiler.codec.fixed_to_fixed import Encrypted, decrypt, density_variation, encrypt
from qcompiler.codec.sparse_formats import BITMASK, CODED, CSR, DELTA, DENSE, ENTROPY, RELATIVE
from qcompiler.codec.xor_code import REGISTERS, XorCode, outputs_for
from qcompiler.errors import InputError, QCompileError, UsageError
from qcompiler.lowering import weight_of
from qcompiler.model.edit import clone, tensor_array, value_names
from qcompiler.plan import CompressionPlan, TensorPlan
from qcompiler.protocols import PassKind, PassResult
from qcompiler.records import Metric, PassReport, Skip, Table, TableRow
from qcompiler.state import Context, Fact, State
from qcompiler.unpacking.encoded import AUTO, F2F, FORMATS, FoldLimits, SparseWeight, decoded, smallest_together
from qcompiler.unpacking.export import mark_streams
from qcompiler.unpacking.numbering import numbering
from qcompiler.unpacking.writer import MIN_OPSET, Unpacker

SLOW_ABOVE = 1 << 17
"""Weights that are encoded for comparison alone also where the encoder is not compiled."""
_COLUMNS = (DENSE, CSR, RELATIVE, BITMASK, CODED, DELTA, ENTROPY, F2F)
_FALL_BACK = {F2F: (BITMASK, DELTA), BITMASK: (DELTA,), DELTA: ()}
_Found: TypeAlias = list[tuple[ir.Value, SparseWeight]]
_Row: TypeAlias = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A format, and why it is not the one that was asked for, or ""."""

    format: str
    why: str


@dataclass(frozen=True, slots=True)
class SparseEncode:
    """Replaces the int8 codes of pruned weights by a sparse format, in standard operators.

    ONNX Runtime computes nodes whose inputs are all constant when it loads a session, so that it holds and runs the
    same dense int8 weights as without this pass. What was pruned comes from the plan; weights that were not stay.

    Attributes:
        format: auto, f2f, bitmask, delta or dense; "" takes the recipe's. auto is the smallest file.
        code: of f2f: 1-12, 8-0, 8-1 or 8-2, which takes long.
        interleave: of f2f: let a block take weights from all over a tensor.
        threads: of the encoder; 0 is all cores. The bytes do not depend on it.
        largest_mib / peak_mib: what decoding may take while a session loads, in MiB: one array, and all of them.
    """

    name: ClassVar[str] = "sparse-encode"
    kind: ClassVar[PassKind] = PassKind.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset()
    format: str = ""
    code: str = "1-12"
    interleave: bool = True
    threads: int = 0
    largest_mib: int = 1024
    peak_mib: int = 4096

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise UsageError(f"sparse-encode: there is no format '{self.format}'; formats are {', '.join(FORMATS)}")
        if self.code not in REGISTERS:
            raise UsageError(f"sparse-encode: there is no code '{self.code}'; codes are {', '.join(REGISTERS)}")

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with a graph that holds sparse formats instead of the codes of pruned weights."""
        model = clone(state.model)
        found = [(value, _weight(value, entry)) for value, entry in _pruned(model, state.plan)]
        if not found:
            return PassResult(state, PassReport(name=self.name, changed=False))
        weights, wanted = [w for _, w in found], self.format or context.recipe.sparse_format
        notes = self._encode(found, wanted, context)
        limits, opset = FoldLimits(self.largest_mib << 20, self.peak_mib << 20), model.opset_imports.get("", 0)
        asked = [state.plan.tensors[w.name].encoding or wanted for w in weights]
        chosen = _choices(weights, asked, limits, opset)
        skipped = [
            Skip(w.name, f"stored {_as(c.format)}: {c.why or 'zeros cost less than their places'}")
            for w, c in zip(weights, chosen, strict=True)
            if c.why or c.format == DENSE
        ]
        names = [c.format for c in chosen]
        stored = _written(model, [(v, w, n) for (v, w), n in zip(found, names, strict=True)], limits)
        changed = any(name != DENSE for name in names)
        report = PassReport(
            name=self.name,
            changed=changed,
            metrics=_metrics(weights, names, stored),
            skipped=tuple(skipped),
            notes=tuple(notes),
            tables=tuple(_tables(weights, names)),
        )
        return PassResult(replace(state, model=model) if changed else state, report)

    def _encode(self, found: _Found, wanted: str, context: Context) -> list[str]:
        """Give the weights their fixed-to-fixed streams, and return what is to be said about that."""
        if wanted not in (F2F, AUTO):
            return []
        done, total, notes = 0, sum(w.numbers.size * w.numbering.num_bits for _, w in found), []
        for _, weight in found:
            small = jit.AVAILABLE or weight.numbers.size <= SLOW_ABOVE
            if context.budget.spent() or not (wanted == F2F or small):
                notes.append(f"{weight.name}: fixed-to-fixed streams were not made: " + _why_not(small))
            else:
                weight.streams = self._streams(weight, context, (done, total))
            done += weight.numbers.size * weight.numbering.num_bits
        if not jit.AVAILABLE:
            notes.append("fixed-to-fixed streams are encoded without numba, which is much slower")
        return notes

    def _streams(self, weight: SparseWeight, context: Context, before: tuple[int, int]) -> Encrypted:
        """Return the streams of a weight, those of an earlier run if that was stopped behind them."""
        numbers, planes = weight.numbers, weight.numbering.num_bits
        digest = hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()
        saved = context.checkpoint.load(f"{weight.name} {digest}")
        made = _read(saved["streams"]) if saved is not None and "streams" in saved else None
        if made is None or not np.array_equal(decrypt(made), numbers.reshape(-1)):
            code = XorCode(self.code, outputs_for(1.0 - np.count_nonzero(numbers) / numbers.size))
            made = encrypt(
                numbers,
                planes,
                code,
                interleaved=self.interleave,
                threads=self.threads or os.cpu_count() or 1,
                told=lambda done, _: context.progress("encoding sparse weights", before[0] + done, before[1]),
            )
            if not np.array_equal(decrypt(made), numbers.reshape(-1)):
                raise QCompileError(f"weight '{weight.name}' does not come back from its fixed-to-fixed streams")
            context.checkpoint.save(f"{weight.name} {digest}", {"streams": np.frombuffer(to_bytes(made), np.uint8)})
        return made


def _pruned(model: ir.Model, plan: CompressionPlan) -> Iterator[tuple[ir.Value, TensorPlan]]:
    """Yield the constants that hold the codes of pruned weights, with their entries."""
    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            entry = plan.tensors.get(weight_of(value))
            if entry is not None and entry.sparsity is not None and entry.spec is not None and value.const_value:
                yield value, entry


def _weight(value: ir.Value, entry: TensorPlan) -> SparseWeight:
    if value.const_value is None or entry.spec is None:
        raise QCompileError(f"the codes of weight '{entry.name}' are no constant")
    known = numbering(entry.spec.num_bits, entry.levels)
    return SparseWeight(entry.name, known.numbers(tensor_array(value.const_value)), known)


def _choices(weights: Sequence[SparseWeight], asked: Sequence[str], limits: FoldLimits, opset: int) -> list[_Choice]:
    """Return the formats to store weights in."""
    if opset < MIN_OPSET:
        return [_Choice(DENSE, f"needs opset {MIN_OPSET} or newer") for _ in weights]
    wanted = list(asked)
    for together in _by_numbering([k for k, name in enumerate(asked) if name == AUTO], weights):
        sizes = [weights[k].sizes(limits) for k in together]
        for k, name in zip(together, smallest_together(sizes), strict=True):
            wanted[k] = name
    found, taken = [], 0
    for weight, name, said in zip(weights, wanted, asked, strict=True):
        choice = _choice(weight, name, limits, taken)
        taken += weight.load_bytes(choice.format)[1]
        found.append(replace(choice, why="as asked") if said == DENSE else choice)
    return found


def _choice(weight: SparseWeight, asked: str, limits: FoldLimits, taken: int) -> _Choice:
    """Return the format to store a weight in beside others, whose decoding takes some bytes."""
    if asked == F2F and weight.streams is None:
        return _Choice(BITMASK, "its streams were not made in time")
    if weight.fits(asked, limits, taken):
        return _Choice(asked, "")
    largest, together = weight.load_bytes(asked)
    why = f"decoding {_as(asked)} would take {together >> 20} MiB, {largest >> 20} MiB in one array, at every load"
    others = (name for name in _FALL_BACK[asked] if weight.fits(name, limits, taken))
    return _Choice(next(others, DENSE), why)


def _written(model: ir.Model, chosen: Sequence[tuple[ir.Value, SparseWeight, str]], limits: FoldLimits) -> int:
    """Give a model the chosen formats, and return the bytes that they store; edits the model."""
    writer, stored = Unpacker(model.graph, value_names(model)), 0
    for name in dict.fromkeys(name for _, _, name in chosen):
        some = [(value, weight) for value, weight, n in chosen if n == name]
        if name == DENSE:
            stored += sum(w.bytes_as(DENSE) or 0 for _, w in some)
            continue
        for places in _by_numbering(range(len(some)), [w for _, w in some]):
            for group in _fitting([some[k] for k in places], name, limits):
                codes, size = decoded(writer, name, [w for _, w in group], model.opset_imports.get("", 0))
                stored += size
                for (value, weight), found in zip(group, codes, strict=True):
                    writer.stand_for(value, found)
                    if name == F2F and weight.streams is not None:
                        mark_streams(writer, weight.name, weight.streams)
    writer.place()
    return stored


def _by_numbering(places: Iterable[int], weights: Sequence[SparseWeight]) -> list[list[int]]:
    """Return the places of weights whose numbers stand for the same codes, group by group."""
    groups: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place in places:
        known = weights[place].numbering
        groups[known.num_bits, known.levels.tobytes()].append(place)
    return list(groups.values())


def _fitting(weights: _Found, name: str, limits: FoldLimits) -> Iterator[_Found]:
    """Yield stretches of weights whose largest array, when they are decoded together, is within the limit."""
    group: _Found = []
    used = 0
    for value, weight in weights:
        largest = weight.load_bytes(name)[0]
        if group and used + largest > limits.largest_bytes:
            yield group
            group, used = [], 0
        group.append((value, weight))
        used += largest
    yield group


def _as(name: str) -> str:
    return "dense" if name == DENSE else f"as {name}"


def _why_not(small: bool) -> str:
    return "the time is up" if small else "the encoder needs numba for so many weights"


def _read(content: NDArray[np.uint8]) -> Encrypted | None:
    try:
        return from_bytes(content.tobytes())
    except InputError:
        return None


def _metrics(weights: list[SparseWeight], chosen: list[str], stored: int) -> tuple[Metric, ...]:
    taken = sum(w.load_bytes(name)[1] for w, name in zip(weights, chosen, strict=True))
    dense = sum(w.bytes_as(DENSE) or 0 for w in weights)
    encoded = sum(name != DENSE for name in chosen)
    return (
        Metric("encoded", encoded, "tensors"),
        Metric("dense", dense, "bytes"),
        Metric("stored", stored, "bytes"),
        Metric("decoding takes about", taken, "bytes"),
    )


def _tables(weights: list[SparseWeight], chosen: list[str]) -> Iterator[Table]:
    """Yield what every format takes, the parts and the quality of the streams, and what is left behind zip."""
    names = [w.name for w in weights]
    sizes: list[_Row] = [
        tuple(None if (size := w.bytes_as(name)) is None else float(size) for name in _COLUMNS) for w in weights
    ]
    notes = [f"stored {_as(name)}" for name in chosen]
    yield _table("Sparse weights by format, without the graph that decodes", "bytes", _COLUMNS, (names, sizes, notes))
    zips: list[_Row] = [
        (float(w.zipped_as(DENSE)), float(w.zipped_as(n))) for w, n in zip(weights, chosen, strict=True)
    ]
    yield _table("Sparse weights behind zip", "bytes", (DENSE, "as stored"), (names, zips, notes))
    coded = [(w.name, w.streams) for w in weights if w.streams is not None]
    if not coded:
        return
    parts: list[_Row] = [
        tuple(map(float, (s.streams.size, s.mask.size, s.corrections.size, s.table_bytes))) for _, s in coded
    ]
    columns = ("streams", "mask", "corrections", "tables")
    yield _table("Fixed-to-fixed streams", "bytes", columns, ([n for n, _ in coded], parts, [""] * len(coded)))
    yield _quality([w for w in weights if w.streams is not None])


def _quality(weights: list[SparseWeight]) -> Table:
    rows = []
    for weight in weights:
        streams = weight.streams
        if streams is None:
            continue
        planes = streams.efficiency()
        by_plane = tuple(planes.get(plane) for plane in range(8))
        share = 100.0 * (1.0 - np.count_nonzero(weight.numbers) / weight.numbers.size)
        spread = 100.0 * density_variation(weight.numbers, streams.geometry)
        note = f"{streams.network.outputs} weights a byte"
        rows.append(TableRow(weight.name, (share, streams.memory_reduction(), spread, *by_plane), note))
    columns = ("sparsity", "reduction", "density variation", *(f"E of plane {plane}" for plane in range(8)))
    return Table("Fixed-to-fixed streams: efficiency", "%", columns, tuple(rows))


def _table(title: str, unit: str, columns: tuple[str, ...], rows: tuple[list[str], list[_Row], list[str]]) -> Table:
    """Return a table with the sums of its columns as the last line, where more than one line has all of them."""
    lines = [TableRow(name, values, note) for name, values, note in zip(*rows, strict=True)]
    sums = tuple(None if None in column else float(sum(filter(None, column))) for column in zip(*rows[1], strict=True))
    return Table(title, unit, columns, (*lines, TableRow("all", sums)))
