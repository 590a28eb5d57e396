"""Variations of samples for distillation: the float model judges whatever is made up, so no class must be kept."""

from __future__ import annotations

import torch
from torch import Tensor

SHIFT = 1 / 16
"""Largest shift of a photograph, as a share of its side."""


def varied(feeds: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return feeds that differ a little from the given ones.

    Photographs (rank 4 with three channels) are mirrored and shifted; then half of the rows of every floating-point
    input of a model with a single input are mixed with another row. Everything else is returned as it is.

    Args:
        feeds: stacked rows by input name.
        generator: on the CPU; decides everything.

    Source: Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization (arXiv:1710.09412), with alpha = 1. Differs:
    labels are not mixed, for the float model is asked about the mixture.
    """
    if len(feeds) != 1:
        return feeds
    ((name, rows),) = feeds.items()
    if not rows.is_floating_point() or rows.dim() < 2 or len(rows) < 2:
        return feeds
    if rows.dim() == 4 and 3 in (rows.shape[1], rows.shape[3]):
        last = rows.shape[1] != 3
        images = rows.movedim(3, 1) if last else rows
        moved = _moved(images, generator)
        rows = moved.movedim(1, 3) if last else moved
    return {name: _mixed(rows, generator)}


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of shape (rows, 3, height, width), each shifted and perhaps mirrored; edges are repeated."""
    count, _, height, width = images.shape
    flips = torch.rand(count, generator=generator) < 0.5
    reach = torch.tensor([max(1, round(height * SHIFT)), max(1, round(width * SHIFT))])
    shifts = (torch.rand(count, 2, generator=generator) * (2 * reach + 1)).long() - reach
    down = (torch.arange(height) + shifts[:, :1]).clamp(0, height - 1).to(images.device)
    across = (torch.arange(width) + shifts[:, 1:]).clamp(0, width - 1)
    across = torch.where(flips[:, None], across.flip(1), across).to(images.device)
    rows = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[rows, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def _mixed(rows: Tensor, generator: torch.Generator) -> Tensor:
    count = len(rows)
    chosen = torch.rand(count, generator=generator) < 0.5
    share = torch.rand(count, generator=generator) * chosen
    partner = torch.randperm(count, generator=generator)
    shape = (count, *([1] * (rows.dim() - 1)))
    weight = share.reshape(shape).to(rows.device, rows.dtype)
    return rows * (1 - weight) + weight * rows[partner.to(rows.device)]
