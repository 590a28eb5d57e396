"""What an encoder is to match: the unpruned outputs of consecutive blocks, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Care:
    """The unpruned outputs of a run of blocks, by block and then by output.

    Attributes:
        blocks: how many blocks there are.
        block: int64 of shape (n,), not falling: the block of each unpruned output.
        row: int64 of shape (n,), rising inside a block: which output of its block it is.
        bits: uint8 0 or 1 of shape (n, planes): what it is to be in every plane.
    """

    blocks: int
    block: NDArray[np.int64]
    row: NDArray[np.int64]
    bits: NDArray[np.uint8]

    @property
    def planes(self) -> int:
        """Return how many planes there are."""
        return int(self.bits.shape[1])

    @property
    def starts(self) -> NDArray[np.int64]:
        """Return where the outputs of each block begin, int64 of shape (blocks + 1,)."""
        return starts_of(self.block, self.blocks)

    def of_planes(self, which: slice) -> Care:
        """Return the same for some of the planes."""
        return Care(self.blocks, self.block, self.row, self.bits[:, which])

    def without(self, dropped: NDArray[np.bool_]) -> Care:
        """Return the same without some outputs; what they become is left open."""
        kept = ~dropped
        return Care(self.blocks, self.block[kept], self.row[kept], self.bits[kept])


def starts_of(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return where each of ``count`` places begins in a sorted list of places, int64 of shape (count + 1,)."""
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(places, minlength=count), out=starts[1:])
    return starts


def crowded(places: NDArray[np.int64], window: int, most: int) -> NDArray[np.bool_]:
    """Return which outputs to leave open so that no ``window`` consecutive places have more than ``most``."""
    order = np.arange(places.size)
    return np.asarray(order - np.searchsorted(places, places - window, side="right") >= most)
