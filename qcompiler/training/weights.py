"""Trained weights: ways to let an optimizer choose among the levels that a plan allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qcompiler.lowering import weight_codes
from qcompiler.plan import TensorPlan
from qcompiler.quant.grid import SMALLEST_SCALE

EIGHT_BITS = np.arange(-127, 128, dtype=np.int8)
EDGE = 0.05
"""Part of a cell next to its border where no weight starts: it would fall into the next cell at the first step."""
RELUCTANCE = 1.0
"""Part of the way from the border to its level at which a weight starts, for each gap that it lies beyond the border.

Solvers round many weights away from the nearest level on purpose. If all of these started at their borders, the first
noisy steps would take back in one go what the solver found.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where the training of a weight starts: at its planned codes, as near to the float weight as they allow.

    Attributes:
        entry: the plan.
        position: the weight over its scale, float32; its nearest level is the planned code.
        scale: the planned scale, broadcast against the weight.
        levels: sorted, float32.
        outputs: the axis of the output channels, None if the scale is one for all.
    """

    entry: TensorPlan
    position: Tensor
    scale: Tensor
    levels: Tensor
    outputs: int | None

    @property
    def reach(self) -> float:
        """The largest level: how many grid steps it moves if the scale grows by its own size."""
        return float(self.levels.abs().max())

    @property
    def gap(self) -> float:
        """The mean distance of neighbouring levels: a table fitted in int8 has few levels far apart."""
        spread = float(self.levels[-1] - self.levels[0])
        return spread / (len(self.levels) - 1) if spread > 0 else 1.0

    def grown(self, growth: Tensor) -> Tensor:
        """Return the scale, grown so that the largest level moves by about ``growth`` gaps between levels."""
        return (self.scale * (growth * (self.gap / self.reach)).exp()).clamp(min=SMALLEST_SCALE)


class TrainedWeight(Protocol):
    """A weight that an optimizer moves, in units of its scale."""

    start: Start
    soft: bool
    """It is trained by its loose codes, which gradually become levels; else by its codes."""

    def leaves(self) -> Sequence[Tensor]:
        """Return what is trained, in units in which one learning rate suits all; the growth of the scale is last."""
        ...

    def scale(self) -> Tensor:
        """Return the scale as it is now, broadcast against the weight; gradients pass."""
        ...

    def codes(self) -> Tensor:
        """Return levels, as a plan stores them."""
        ...

    def loose(self) -> Tensor:
        """Return what stands for the codes while the optimizer moves them freely."""
        ...

    def project(self) -> None:
        """Move what is loose onto the codes."""
        ...

    def penalty(self, progress: float) -> Tensor:
        """Return how far the loose codes are from being levels, from 0 to 1, and 0 for what always is on levels.

        Args:
            progress: part of the training that is over, from 0 to 1.
        """
        ...


Parametrization = Callable[[Start], TrainedWeight]


class _NearestLevel(torch.autograd.Function):  # type: ignore[misc]
    """The nearest level of a table; the gradient is 1 inside the table's range and 0 outside."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, levels: Tensor) -> Tensor:
        half = (levels[-1] - levels[0]) / max(2 * (len(levels) - 1), 1)
        ctx.save_for_backward((x >= levels[0] - half) & (x <= levels[-1] + half))
        return levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Return the nearest levels of a sorted table, straight through for gradients inside its range."""
    found: Tensor = _NearestLevel.apply(x, levels)
    return found


class StraightThrough:
    """A weight that moves freely and is rounded wherever it is used; gradients pass straight through the rounding.

    Its position is trained in gaps between levels, and its scale so that the largest level moves as fast: one
    learning rate suits tables of any width, and the scale does not run ahead of the weights.

    Source: Esser et al. 2020, Learned Step Size Quantization (arXiv:1902.08153), equations 1 to 3, for the gradient
    of the scale, which follows from passing the rounding straight. Differs: levels may be any integers, and the
    scale is trained by its logarithm, in the unit above instead of with their gradient scale.
    """

    soft = False

    def __init__(self, start: Start) -> None:
        self.start = start
        self._gap = start.gap
        self.gaps = (start.position / self._gap).requires_grad_()
        self.growth = torch.zeros_like(start.scale).requires_grad_()

    def leaves(self) -> Sequence[Tensor]:
        """Return the position, in gaps between levels, and the growth of the scale."""
        return self.gaps, self.growth

    def scale(self) -> Tensor:
        """Return the planned scale times its growth."""
        return self.start.grown(self.growth)

    def codes(self) -> Tensor:
        """Return the levels nearest to the position."""
        return nearest(self.loose(), self.start.levels)

    def loose(self) -> Tensor:
        """Return the position."""
        return self.gaps * self._gap

    def project(self) -> None:
        """Move every weight to its nearest level."""
        with torch.no_grad():
            self.gaps.copy_(self.codes() / self._gap)

    def penalty(self, progress: float) -> Tensor:
        """Return 0: codes are levels."""
        return torch.zeros((), device=self.gaps.device)


class FixedCodes:
    """A weight whose codes stay what they are: only its scale is trained.

    Source: Kim et al. 2023, Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer
    Quantization (arXiv:2305.14152), equation 2. Differs: the scale is trained by its logarithm, so that it stays
    positive, and codes are any levels of a plan.
    """

    soft = False

    def __init__(self, start: Start) -> None:
        self.start = start
        self._codes = nearest(start.position, start.levels)
        self.growth = torch.zeros_like(start.scale).requires_grad_()

    def leaves(self) -> Sequence[Tensor]:
        """Return the growth of the scale."""
        return (self.growth,)

    def scale(self) -> Tensor:
        """Return the planned scale, grown."""
        return self.start.grown(self.growth)

    def loose(self) -> Tensor:
        """Return the codes."""
        return self._codes

    def codes(self) -> Tensor:
        """Return the planned codes."""
        return self._codes

    def project(self) -> None:
        """Do nothing: codes never move."""

    def penalty(self, progress: float) -> Tensor:
        """Return 0: codes are levels."""
        return torch.zeros((), device=self.growth.device)


class FlexRound:
    """A weight that every element divides by a factor of its own before it is rounded, so that large ones move more.

    The divisor is the grid size s1 times exp(S2 + s3 + s4): one factor for each element, output channel and input
    channel of a convolution. Only s1 decodes. Logarithms are in units of the inverse of a typical position, so that
    one step of the optimizer moves a typical weight by as much as with any other parametrization.

    Source: Lee et al. 2023, FlexRound: Learnable Rounding based on Element-wise Division for Post-Training
    Quantization (arXiv:2306.00317): s1, S2, s3 and s4 of its method. Differs: levels may be any integers, the
    nearest of which is taken, and what is divided is the weight moved into the cell of its planned code, so that a
    solver's codes are the start.
    """

    soft = False

    def __init__(self, start: Start) -> None:
        self.start = start
        position = start.position
        typical = float(position.square().mean().sqrt())
        self._unit = start.gap / max(typical, start.gap)
        shapes = [tuple(position.shape)]
        for axis in {start.outputs, 1 if position.dim() > 2 and start.outputs == 0 else None} - {None}:
            shapes.append(tuple(n if i == axis else 1 for i, n in enumerate(position.shape)))
        self._divisors = [torch.zeros(s, device=position.device).requires_grad_() for s in shapes]
        self.growth = torch.zeros_like(start.scale).requires_grad_()

    def leaves(self) -> Sequence[Tensor]:
        """Return the logarithms of all divisors and of the grid size's growth."""
        return *self._divisors, self.growth

    def scale(self) -> Tensor:
        """Return the grid size."""
        return self.start.grown(self.growth)

    def loose(self) -> Tensor:
        """Return the weight over its divisor."""
        divisor = self.growth * (self.start.gap / self.start.reach)
        for part in self._divisors:
            divisor = divisor + self._unit * part
        return self.start.position * (-divisor).exp()

    def codes(self) -> Tensor:
        """Return the levels nearest to the weight over its divisor."""
        return nearest(self.loose(), self.start.levels)

    def project(self) -> None:
        """Do nothing: rounding is a part of every run."""

    def penalty(self, progress: float) -> Tensor:
        """Return 0: codes are levels."""
        return torch.zeros((), device=self.growth.device)


STRETCH = 0.1
"""How far the sigmoid of a soft bit is stretched beyond 0 and 1, so that it reaches both."""
FREE = 0.2
"""Part of the training in which no soft bit is pressed."""
SETTLED = 0.7
"""Part of the training behind which the penalty stays as sharp as it gets: the optimizer still takes large steps."""
SHARPEST, FLATTEST = 2.0, 20.0
BIT_STEP = 4.0
"""Units of a soft bit's logit in one grid step, near the middle: the inverse of the stretched sigmoid's slope."""


class SoftBit:
    """A weight between its two neighbouring levels: a soft bit chooses, and is pressed to 0 or 1 as training goes on.

    The lower of the two levels stays what it is when the scale moves, so that scale and rounding do not pull at each
    other.

    Source: Jeon et al. 2023, Genie: Show Me the Data for Quantization (arXiv:2212.04780), Genie-M, for the
    learned scale over a fixed base; Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization
    (arXiv:2004.10568), equations 23 and 24, for the bit and its regularizer. Differs: neighbours in any table.
    """

    soft = True

    def __init__(self, start: Start) -> None:
        self.start = start
        levels = start.levels
        index = torch.bucketize(start.position, levels).clamp(1, max(len(levels) - 1, 1)) - 1
        self._low = levels[index]
        self._gap = levels[(index + 1).clamp(max=len(levels) - 1)] - self._low
        share = ((start.position - self._low) / self._gap.clamp(min=1)).clamp(EDGE, 1 - EDGE)
        self.logit = (torch.logit((share + STRETCH) / (1 + 2 * STRETCH)) / BIT_STEP).requires_grad_()
        self.growth = torch.zeros_like(start.scale).requires_grad_()

    def leaves(self) -> Sequence[Tensor]:
        """Return the logits of the bits and the growth of the scale."""
        return self.logit, self.growth

    def scale(self) -> Tensor:
        """Return the planned scale times its growth."""
        return self.start.grown(self.growth)

    def _bit(self) -> Tensor:
        return ((1 + 2 * STRETCH) * torch.sigmoid(BIT_STEP * self.logit) - STRETCH).clamp(0, 1)

    def loose(self) -> Tensor:
        """Return the point between the two levels."""
        return self._low + self._gap * self._bit()

    def codes(self) -> Tensor:
        """Return the level that each bit is nearer to; no gradient passes."""
        return self._low + self._gap * (self._bit() > 0.5)

    def project(self) -> None:
        """Press every bit to the level it is nearer to."""
        with torch.no_grad():
            reach = 1.01 * math.log((1 + STRETCH) / STRETCH) / BIT_STEP  # beyond the end, whatever the rounding
            self.logit.copy_(torch.where(self._bit() > 0.5, reach, -reach))

    def penalty(self, progress: float) -> Tensor:
        """Return the mean of 1 - |2 bit - 1|**beta, with beta falling from 20 to 2; 0 in the first fifth."""
        if progress < FREE:
            return torch.zeros((), device=self.logit.device)
        gone = min(1.0, (progress - FREE) / (SETTLED - FREE))
        beta = SHARPEST + (FLATTEST - SHARPEST) * (1 - gone)
        return 1 - (2 * self._bit() - 1).abs().pow(beta).mean()


def start_of(entry: TensorPlan, weight: Tensor) -> Start:
    """Return where the training of a planned weight starts.

    Args:
        entry: with a scale.
        weight: the float weight.
    """
    weight = weight.detach().float()
    device = weight.device
    levels = EIGHT_BITS if entry.levels is None else entry.levels
    axis = entry.spec.axis if entry.spec is not None else None
    shape = [1] * weight.dim()
    if axis is not None:
        shape[axis] = -1
    scale = torch.tensor(np.asarray(entry.scale, np.float32), device=device).reshape(shape)
    codes = torch.tensor(weight_codes(weight.cpu().numpy(), entry).astype(np.float32), device=device)
    table = torch.tensor(levels.astype(np.float32), device=device)
    return Start(entry, _within_cell(weight / scale, codes, table), scale, table, axis)


def planned_weight(weight: TrainedWeight) -> TensorPlan:
    """Return the plan of a weight with its codes and scale as training left them."""
    entry = weight.start.entry
    scale = weight.scale().detach().cpu().numpy().astype(np.float32)
    shaped = scale.reshape(() if entry.scale is None else entry.scale.shape)
    codes = weight.codes().detach().cpu().numpy().astype(np.int8)
    top = float(np.abs(weight.start.levels.cpu().numpy()).max()) * float(shaped.max())
    sparsity = None if entry.sparsity is None else float((codes == 0).mean())
    reason = f"{entry.reason}; trained"
    return replace(entry, scale=shaped, codes=codes, sparsity=sparsity, clip=(-top, top), reason=reason)


def _within_cell(wanted: Tensor, codes: Tensor, levels: Tensor) -> Tensor:
    """Return the points nearest to the wanted ones that round to given codes, and further inside the further off."""
    middles = (levels[1:] + levels[:-1]) / 2
    ends = torch.tensor([torch.inf], device=levels.device)
    index = torch.bucketize(codes, middles)
    low, high = torch.cat([-ends, middles])[index], torch.cat([middles, ends])[index]
    gap = (levels[-1] - levels[0]) / max(len(levels) - 1, 1)
    room = torch.where((high - low).isfinite(), (high - low) * EDGE, EDGE * gap)
    inside = torch.minimum(torch.maximum(wanted, low + room), high - room)
    inside = inside + (RELUCTANCE * (inside - wanted).abs() / gap).clamp(max=1.0) * (codes - inside)
    return inside.clamp(float(levels[0] - gap / 2), float(levels[-1] + gap / 2))
