"""Trained tables: codes of rows stay what they are, and what they stand for is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, pad

from qcompiler.codec.bits import unpack
from qcompiler.codec.planes import row_ranks
from qcompiler.errors import QCompileError
from qcompiler.plan import TensorPlan
from qcompiler.quant.rows import GROUP
from qcompiler.quant.transform import exact_words
from qcompiler.row_codes import RowKind


class TrainedRows:
    """A table in codes of rows: the vectors that bytes stand for, the scales of rows and the mean row are trained.

    All of them are few against the codes, and most are shared by all rows, so that rows that no sample reads are
    trained, too. Leaves are in units in which one learning rate suits them and weights: vectors and mean in the
    typical size of a vector's numbers, scales in their own size. Signs have no vectors to train.

    Args:
        entry: planned in rows.
        device: where to train.

    Raises:
        QCompileError: the entry has no rows.
    """

    def __init__(self, entry: TensorPlan, device: torch.device) -> None:
        if entry.rows is None:
            raise QCompileError(f"table '{entry.name}' is planned without rows")
        self._entry, self._rows = entry, entry.rows
        rows, kind = entry.rows, entry.rows.kind
        self._words = torch.tensor(rows.plane_tables(), device=device)
        self._codes = [torch.tensor(plane.astype(np.int64), device=device) for plane in _indices(entry)]
        self._scales = [torch.tensor(scale.astype(np.float32), device=device) for scale in rows.scales]
        self._mean = torch.tensor(rows.mean, device=device)
        floats = None if rows.transform is None else rows.transform.astype(np.float32)
        self._transform = None if floats is None else torch.tensor(floats, device=device)
        self._ranks = torch.tensor(row_ranks(rows.bits), device=device)
        power = self._words.square().mean((1, 2), keepdim=True).sqrt()
        self._word_unit = torch.where(power > 0, power, torch.ones_like(power))
        self._mean_unit = self._scales[0].abs().median() if self._scales and self._scales[0].numel() else 1.0
        self._shifts = torch.zeros_like(self._words).requires_grad_() if kind is RowKind.PRODUCT else None
        trained = self._scales[:1] if kind is RowKind.GRID else self._scales
        self._growths = [torch.zeros_like(scale).requires_grad_() for scale in trained]
        self._mean_shift = torch.zeros_like(self._mean).requires_grad_()

    def leaves(self) -> Sequence[Tensor]:
        """Return what is trained."""
        words = [] if self._shifts is None else [self._shifts]
        return [*words, *self._growths, self._mean_shift]

    def decoded(self) -> Tensor:
        """Return the table as it is now, shape (rows, columns); gradients pass."""
        total = self._on_grid() if self._rows.kind is RowKind.GRID else self._summed()
        return total + self._shifted_mean()

    def planned(self) -> TensorPlan:
        """Return the plan of the table as training left it."""
        grown = [self._scale(number).detach().cpu().numpy() for number in range(len(self._growths))]
        kept = [scale.cpu().numpy() for scale in self._scales[len(grown) :]]
        kinds = [scale.dtype for scale in self._rows.scales]
        words = self._rows.tables if self._shifts is None else self._now().detach().cpu().numpy()
        words = words if self._rows.transform is None else exact_words(words, self._rows.transform)
        rows = replace(
            self._rows,
            scales=tuple(s.astype(t) for s, t in zip([*grown, *kept], kinds, strict=True)),
            tables=words,
            mean=self._shifted_mean().detach().cpu().numpy(),
        )
        return replace(self._entry, rows=rows, reason=f"{self._entry.reason}; trained")

    # -- decoding --------------------------------------------------------------------------------------

    def _now(self) -> Tensor:
        """Return the vectors: the first of every plane but the first stays the zero vector."""
        if self._shifts is None:
            return self._words
        held = torch.ones_like(self._word_unit).expand(-1, self._words.shape[1], 1).clone()
        held[1:, 0] = 0
        return self._words + self._word_unit * held * self._shifts

    def _scale(self, number: int) -> Tensor:
        return self._scales[number] * self._growths[number].exp()

    def _shifted_mean(self) -> Tensor:
        return self._mean + self._mean_unit * self._mean_shift

    def _summed(self) -> Tensor:
        rows, product = self._rows, self._rows.kind is RowKind.PRODUCT
        width = -(-rows.columns // GROUP) * GROUP
        words = self._now()
        total = torch.zeros((rows.rows, width), device=self._mean.device)
        for number, codes in enumerate(self._codes):
            values = embedding(codes, words[number]).reshape(len(codes), width)
            if not product:
                values = _scaled(values, self._scale(number))
            total = total + pad(values, (0, 0, 0, rows.rows - len(codes)))
        if product and self._codes:
            total = total if self._transform is None else total @ self._transform
            scale = self._scale(0)
            total = _scaled(total, pad(scale, (0, 0, 0, rows.rows - len(scale))))
        return total[:, : rows.columns].index_select(0, self._ranks)

    def _on_grid(self) -> Tensor:
        scale = self._scale(0)
        whole = self._codes[0].float() - float(2 ** (int(self._rows.bits[0]) - 1))
        return whole * scale.repeat_interleave(whole.shape[1] // scale.shape[1], 1) + self._scales[1]


def _indices(entry: TensorPlan) -> list[NDArray[np.uint8]]:
    """Return the bytes of every plane, or the integers of a grid."""
    rows = entry.rows
    if rows is None or rows.kind is not RowKind.GRID:
        return [] if rows is None else list(rows.planes)
    whole = unpack(rows.planes[0].reshape(-1), int(rows.bits[0]), rows.rows * rows.columns)
    return [whole.reshape(rows.rows, -1)]


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    """Return rows times their scales per group of columns."""
    parts = values.reshape(len(values), scale.shape[1], -1)
    return (parts * scale.unsqueeze(-1)).reshape(values.shape)
