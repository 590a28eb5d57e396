"""Variations of samples for distillation: the float model judges whatever is made up, so no class must be kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_PART = 0.3
"""Smallest part of a photograph that is shown, as a share of its area."""
FEWEST_PIXELS = 28
"""Nor is a part smaller than so many pixels a side: enlarged, it would be a blur such as no sample is. Images that are
smaller as a whole are cut like large ones."""
LONGEST_PART = 4 / 3
"""Most by which a part is longer one way than the other, in shares of the photograph's sides."""


def varied(feeds: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return feeds that differ a little from the given ones.

    Of photographs (rank 4 with three channels) random parts are shown, mirrored or not; then half of the rows of every
    floating-point input of a model with a single input are mixed with another row. Everything else is returned as it
    is.

    Args:
        feeds: stacked rows by input name.
        generator: on the CPU; decides everything.

    Source: Szegedy et al. 2015, Going Deeper with Convolutions (arXiv:1409.4842), section 6, for the parts; Zhang et
    al. 2018, mixup: Beyond Empirical Risk Minimization (arXiv:1710.09412), with alpha = 1. Differs: labels are not
    mixed, for the float model is asked about the mixture.
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
    """Return images of shape (rows, 3, height, width): a random part of each, as large as it, perhaps mirrored."""
    count = len(images)
    area, aspect, down, across, side = torch.rand(5, count, generator=generator)
    share = FEWEST_PIXELS**2 / (images.shape[2] * images.shape[3])
    least = share if SMALLEST_PART < share < 1 else SMALLEST_PART
    area = least + (1 - least) * area
    aspect = torch.exp((2 * aspect - 1) * math.log(LONGEST_PART))
    height, width = (part.sqrt().clamp(max=1.0) for part in (area / aspect, area * aspect))
    where = torch.zeros(count, 2, 3)
    where[:, 0, 0], where[:, 0, 2] = torch.where(side < 0.5, -width, width), (2 * across - 1) * (1 - width)
    where[:, 1, 1], where[:, 1, 2] = height, (2 * down - 1) * (1 - height)
    grid = torch.nn.functional.affine_grid(where, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(
        images, grid.to(images.device, images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def _mixed(rows: Tensor, generator: torch.Generator) -> Tensor:
    count = len(rows)
    chosen = torch.rand(count, generator=generator) < 0.5
    share = torch.rand(count, generator=generator) * chosen
    partner = torch.randperm(count, generator=generator)
    shape = (count, *([1] * (rows.dim() - 1)))
    weight = share.reshape(shape).to(rows.device, rows.dtype)
    return rows * (1 - weight) + weight * rows[partner.to(rows.device)]
