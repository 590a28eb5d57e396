"""Small models with embedding tables, and plans of their rows that need no search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from qcompiler.codec.bits import pack
from qcompiler.codec.planes import pack_planes, row_order, rows_with
from qcompiler.plan import Role, TensorPlan
from qcompiler.quant.transform import exact_words
from qcompiler.row_codes import RowCodes, RowKind
from qcompiler.state import Fact, State
from tests.compiling import Fixed, start
from tests.models import FLOAT, build

ROWS, COLUMNS = 300, 32
INT64, INT32 = TensorProto.INT64, TensorProto.INT32


def table(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    """Rows around a mean row: float32, shape (rows, columns)."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) + rng.standard_normal(columns)).astype(np.float32)


def lookup_net(
    ids: int = INT64, shape: tuple[object, ...] = ("batch", "length"), weight: np.ndarray | None = None
) -> onnx.ModelProto:
    """``ids`` -> ``y``: the rows of the table ``w``."""
    weight = table() if weight is None else weight
    nodes = [helper.make_node("Gather", ["w", "ids"], ["y"], name="embed")]
    return build(nodes, [("ids", ids, list(shape))], [("y", FLOAT, [*shape, weight.shape[1]])], {"w": weight})


def sentence_net() -> onnx.ModelProto:
    """``ids`` -> rows of ``w``, scaled, times a matrix -> ``y``: what an error in a row does differs by column."""
    rng = np.random.default_rng(1)
    mix = (rng.standard_normal((COLUMNS, 8)) * np.geomspace(1, 0.01, COLUMNS)[:, None]).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"], name="embed"),
        helper.make_node("Tanh", ["e"], ["t"], name="tanh"),
        helper.make_node("MatMul", ["t", "mix"], ["y"], name="project"),
    ]
    io = [("ids", INT64, [1, "length"])], [("y", FLOAT, [1, "length", 8])]
    return build(nodes, *io, {"w": table(), "mix": mix})


def sentence_data(seed: int = 0, count: int = 6, length: int = 12) -> Fixed:
    """Sentences that read few of the rows often: ``ids``, int64, shape (1, length) each."""
    ids = np.minimum(np.random.default_rng(seed).geometric(0.05, (count, 1, length)) - 1, ROWS - 1)
    return Fixed([{"ids": row} for row in ids])


def made_codes(kind: RowKind, bits: np.ndarray, columns: int = COLUMNS, groups: int = 1) -> RowCodes:
    """Random codes, scales and words for rows of given bits."""
    rng = np.random.default_rng(7)
    most, length = int(bits.max(initial=0)), -(-columns // 8)
    mean = rng.standard_normal(columns).astype(np.float32)
    if kind is RowKind.GRID:
        codes = rng.integers(0, 2**most, (bits.size, columns)).astype(np.uint8)
        scales = (
            rng.random((bits.size, columns // 16)).astype(np.float32) + 0.5,
            rng.standard_normal((bits.size, 1)).astype(np.float16),
        )
        planes, words = (pack(codes, most).reshape(bits.size, -1),), np.zeros((0, 256, 8), np.float32)
        return RowCodes(kind=kind, columns=columns, bits=bits, planes=planes, scales=scales, tables=words, mean=mean)
    planes = pack_planes(rng.integers(0, 256, (bits.size, most, length)).astype(np.uint8), bits)
    words = rng.standard_normal((most if kind is RowKind.PRODUCT else 0, 256, 8)).astype(np.float32)
    words[1:, 0] = 0
    stored = min(most, 1) if kind is RowKind.PRODUCT else most
    factors = rng.random((bits.size, groups, most)).astype(np.float16) + np.float16(0.5)
    order = row_order(bits)
    scales = tuple(factors[order[: rows_with(bits, p)], :, p] for p in range(stored))
    return RowCodes(kind=kind, columns=columns, bits=bits, planes=planes, scales=scales, tables=words, mean=mean)


def mixing_codes(bits: np.ndarray, columns: int = COLUMNS) -> RowCodes:
    """Random words whose sums are multiplied by a random matrix of small integers."""
    codes = made_codes(RowKind.PRODUCT, bits, columns)
    transform = np.random.default_rng(8).integers(-7, 8, (columns, columns)).astype(np.int8)
    return replace(codes, transform=transform, tables=exact_words(codes.tables, transform))


def planned(proto: onnx.ModelProto, codes: dict[str, RowCodes]) -> State:
    """Return the state of a model whose tables have these codes, ready to be lowered."""
    state = start(proto)
    entries = [TensorPlan(name=name, role=Role.TABLE, rows=rows) for name, rows in codes.items()]
    return replace(state, plan=state.plan.with_tensors(*entries), facts=state.facts | {Fact.PLACEMENT})
