"""Planned weights that make queries, keys and values: what attention makes of their errors, as problems by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.layer_problems import PlannedWeight, takes_mean_back
from qcompiler.model.attention import find_attention
from qcompiler.model.attention_parts import AttentionBlock, NoAttention, Projection
from qcompiler.model.edit import constant_of
from qcompiler.plan import CompressionPlan
from qcompiler.quant.gram import symmetric
from qcompiler.quant.solvers.by_head import HeadRows
from qcompiler.records import Table, TableRow
from qcompiler.runtime.attention_moments import AttentionMoments, capture_attention
from qcompiler.runtime.grams import GramOptions
from qcompiler.state import State

Float64 = NDArray[np.float64]
Grams = Mapping[str, Float64]

ROLES = ("query", "key", "value")
"""Projections with a row Hessian; the output projection is a plain layer, whose rows nothing couples."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Samples with the limits they are captured under, and H of the layers on them by weight."""

    samples: Dataset
    options: GramOptions
    grams: Grams


@dataclass(frozen=True, slots=True, eq=False)
class AttentionProblems:
    """What was found about the attention of a model.

    Attributes:
        blocks / missed: see ``find_attention``.
        heads: weight name -> its rows by head.
        fallbacks: weight or block name -> why its layer is solved without regard to attention.
    """

    blocks: tuple[AttentionBlock, ...]
    missed: tuple[NoAttention, ...]
    heads: Mapping[str, tuple[HeadRows, ...]]
    fallbacks: Mapping[str, str]

    def table(self) -> Table:
        """Return a row for every attention of the model."""
        rows = [TableRow(b.name, (float(b.heads), float(b.head_size)), _described(b, self.heads)) for b in self.blocks]
        rows += [TableRow(m.name, (None, None), f"not understood: {m.reason}") for m in self.missed]
        return Table("Attention in the graph", "", ("heads", "head size"), tuple(rows))


def _described(block: AttentionBlock, heads: Mapping[str, tuple[HeadRows, ...]]) -> str:
    solved = [r for r in ROLES if _is_solved(block.projections[r], r, heads)]
    text = f"{'cross' if block.cross else 'self'}, {block.form}; by head: {', '.join(solved) or 'none'}"
    return "; ".join((text, *block.reasons))


def _is_solved(found: Projection | str, role: str, heads: Mapping[str, tuple[HeadRows, ...]]) -> bool:
    return isinstance(found, Projection) and any(
        h.role == role and np.array_equal(h.rows, found.rows) for h in heads.get(found.weight, ())
    )


def attention_problems(
    state: State, weights: Sequence[PlannedWeight], search: Samples | None, held: Samples | None
) -> AttentionProblems:
    """Return the heads of planned weights with their moments on two sets of samples.

    Args:
        state: a planned state.
        weights: those that get codes.
        search: what solvers see; None where there are no samples.
        held: what decides.

    Raises:
        DataError: the model does not run on a sample.
    """
    blocks, missed = find_attention(state.model)
    fallbacks = {b.name: "; ".join(b.reasons) for b in blocks if b.reasons}
    if search is None or held is None:
        return AttentionProblems(blocks, missed, {}, fallbacks)
    planned = {w.entry.name: w for w in weights}
    wanted = [b for b in blocks if any(_solvable(p, planned, fallbacks) for _, p in _inner(b))]
    both = [capture_attention(state.model, wanted, s.samples, s.options) for s in (search, held)]
    heads: dict[str, list[HeadRows]] = {}
    for block in wanted:
        moments = (both[0][block.name], both[1][block.name])
        if moments[0].reason:
            fallbacks[block.name] = moments[0].reason
        for role, found in _inner(block):
            if isinstance(found, Projection) and _solvable(found, planned, {}):
                grams = (search.grams[found.weight], held.grams[found.weight])
                part = _head_rows(block, role, moments, grams, state.plan)
                if part is not None:
                    heads.setdefault(found.weight, []).append(part)
    return AttentionProblems(blocks, missed, {n: tuple(h) for n, h in heads.items()}, fallbacks)


def _inner(block: AttentionBlock) -> list[tuple[str, Projection | str]]:
    return [(role, block.projections[role]) for role in ROLES]


def _solvable(found: Projection | str, planned: Mapping[str, PlannedWeight], fallbacks: dict[str, str]) -> bool:
    """Return True for a projection whose weight is planned and read by it alone; note why others are not."""
    if isinstance(found, str) or found.weight not in planned:
        return False
    weight = planned[found.weight]
    if weight.layout is None or weight.axis is None:
        return False
    if len(weight.uses) > 1:
        fallbacks[found.weight] = "other layers read the weight too"
        return False
    return True


def _head_rows(
    block: AttentionBlock,
    role: str,
    moments: tuple[AttentionMoments, AttentionMoments],
    grams: tuple[Float64, Float64],
    plan: CompressionPlan,
) -> HeadRows | None:
    """Return the rows of one projection by head, None where its statistics are missing."""
    found = block.projections[role]
    if isinstance(found, str):
        return None
    if role == "value":
        centered = takes_mean_back(found.node, plan)
        inputs = [_weighted_inputs(m, centered=centered) for m in moments]
        rows = [output_hessian(block)] * 2
    else:
        inputs = list(grams)
        rows = [m.keys if role == "query" else m.queries for m in moments]
    if any(a is None or len(a) not in (1, len(found.rows)) for a in (*inputs, *rows)):
        return None
    first, second = ((i, r) for i, r in zip(inputs, rows, strict=True) if i is not None and r is not None)
    return HeadRows(role=role, rows=found.rows, gram=first[0], row_gram=first[1], held=second[0], held_rows=second[1])


def _weighted_inputs(moments: AttentionMoments, *, centered: bool) -> Float64 | None:
    """Return the moment of the values' inputs as attention weighs them; about their mean if a bias takes that back."""
    if moments.inputs is None or moments.means is None:
        return None
    if not centered:
        return moments.inputs
    return symmetric(moments.inputs - moments.means[:, :, None] * moments.means[:, None, :])


def output_hessian(block: AttentionBlock) -> Float64 | None:
    """Return W_O^T W_O of every head of values, float64 of shape (heads, size, size).

    The mean over the query heads that share one; the identity where the output projection is not known.

    Source: Kim et al., "BoA" (2025), as recalled: the released code of its successor leaves this factor out. That it
    is exact follows from the attention's output being linear in the values.
    """
    value, output = block.value, block.output
    if isinstance(value, str):
        return None
    heads, size = value.rows.shape
    if isinstance(output, str):
        return np.broadcast_to(np.eye(size), (heads, size, size))
    array = constant_of(output.node.inputs[1])
    if array is None:
        return None
    flag = output.node.attributes.get("transB")
    weight = np.asarray(array, np.float64)
    weight = weight.T if output.node.op_type == "Gemm" and flag is not None and flag.as_int() else weight
    weight = weight if output.factors is None else weight * output.factors[:, None]
    found = np.zeros((heads, size, size))
    for number, channels in enumerate(output.rows):
        found[value.head_of[number]] += weight[channels] @ weight[channels].T
    return found / np.bincount(value.head_of, minlength=heads)[:, None, None]
