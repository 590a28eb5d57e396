"""Trained weights of a fraction of a bit: the stored bits are trained through the XOR network that decodes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.codec.xor_weights import XorRate
from qcompiler.errors import QCompileError
from qcompiler.training.weights import Start

SHARPNESS = 2.0
"""S_tanh, for stored bits in units of a gap between the two levels, in which a typical weight is at a half."""


NEAREST = 0.02
"""No stored bit starts nearer to 0."""


class _Sign(torch.autograd.Function):  # type: ignore[misc]
    """The sign, +1 for 0; the gradient is that of tanh(SHARPNESS * x).

    Source: Lee et al. 2020, FleXOR (arXiv:2009.04126), section 3: the sign forwards, the slope of tanh backwards.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (SHARPNESS * (1 - torch.tanh(SHARPNESS * x).square()))


class XorBits:
    """A weight of two levels whose bits come out of an XOR network: what is trained is what is stored.

    A stored bit is a number whose sign counts. A weight bit is the product of the signs that it sums, turned round
    where their number is even; the gradient of each sign is the product of the others, and goes on to the stored
    number by the slope of tanh.

    Training starts at the code word nearest to the float weight, each bit as far from 0 as the next best word with
    that bit turned is further off.

    Source: Lee et al. 2020, FleXOR (arXiv:2009.04126), section 3. Differs: the start, where FleXOR draws numbers near
    0; scales are trained by their logarithm.

    Args:
        start: of a weight with two levels.
        rate: of its network.

    Raises:
        QCompileError: the weight has other than two levels.
    """

    soft = False

    def __init__(self, start: Start, rate: XorRate) -> None:
        if len(start.levels) != 2:
            raise QCompileError(f"weight '{start.entry.name}' has {len(start.levels)} levels; an XOR network makes two")
        self.start, self._rate = start, rate
        low, high = start.levels
        costs = (start.position - high).square() - (start.position - low).square()
        by_slice = rate.sliced(costs.reshape(-1).cpu().numpy())
        stored = _stored(start, rate, by_slice)
        from_zero = torch.tensor(rate.margins(by_slice, stored)) / (2 * start.gap**2)
        signs = torch.tensor(stored, dtype=torch.float32) * 2 - 1
        self.stored = (signs * from_zero.clamp(min=NEAREST)).to(start.position.device).requires_grad_()
        self.growth = torch.zeros_like(start.scale).requires_grad_()
        self._taps = [torch.tensor(np.flatnonzero(row), device=start.position.device) for row in rate.sums]

    def leaves(self) -> Sequence[Tensor]:
        """Return the stored bits, as numbers, and the growth of the scale."""
        return self.stored, self.growth

    def scale(self) -> Tensor:
        """Return the planned scale times its growth."""
        return self.start.grown(self.growth)

    def codes(self) -> Tensor:
        """Return the levels that the network makes of the stored bits."""
        signs: Tensor = _Sign.apply(self.stored)
        sums = [(-1.0) ** (len(taps) - 1) * signs[:, taps].prod(1, keepdim=True) for taps in self._taps]
        bits = torch.cat([signs, *sums], 1).reshape(-1)[: self.start.position.numel()]
        low, high = self.start.levels
        return ((high + low) / 2 + (high - low) / 2 * bits).reshape(self.start.position.shape)

    def loose(self) -> Tensor:
        """Return the levels: a sum modulo 2 has no meaning between them."""
        return self.codes()

    def project(self) -> None:
        """Do nothing: what is trained is always what is stored."""

    def penalty(self, progress: float) -> Tensor:
        """Return 0: codes are levels."""
        return torch.zeros((), device=self.stored.device)


def _stored(start: Start, rate: XorRate, costs: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the stored bits that make the planned codes; where there are none, those of the nearest word."""
    codes, levels = start.entry.codes, start.entry.levels
    planned = (
        rate.stored_bits((codes == levels[1]).reshape(-1).astype(np.uint8))
        if codes is not None and levels is not None
        else None
    )
    return rate.nearest(costs) if planned is None else planned
