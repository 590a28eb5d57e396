"""Resize and Upsample, as separable interpolation along one axis after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.executor.operator import Kernel, Maker, Operator, has_one_row

COORDINATES = frozenset({"asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"})
NEAREST = frozenset({"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"})


@dataclass(frozen=True, slots=True)
class _Interpolation:
    """Attributes of Resize that say which inputs an output is made of."""

    mode: str
    coordinates: str
    nearest: str = "floor"
    cubic: float = -0.75

    def places(self, size: int, new: int, scale: float) -> Tensor:
        """Return the place in the input of every output along an axis, float64 (new,)."""
        index = torch.arange(new, dtype=torch.float64)
        if self.coordinates == "align_corners":
            return index * ((size - 1) / (new - 1)) if new > 1 else index * 0
        if self.coordinates == "asymmetric":
            return index / scale
        if self.coordinates == "pytorch_half_pixel" and new == 1:
            return index * 0
        return (index + 0.5) / scale - 0.5

    def taps(self, size: int, new: int, scale: float) -> list[tuple[Tensor, Tensor | None]]:
        """Return (places, weights) of the inputs whose weighted sum an output is; None is a weight of 1."""
        at = self.places(size, new, scale)
        if self.mode == "nearest":
            return [(self._rounded(at).long().clamp(0, size - 1), None)]
        low = at.floor()
        part = at - low
        if self.mode == "linear":
            at = at.clamp(0, size - 1)
            low = at.floor()
            part = at - low
            pairs = [(0, 1 - part), (1, part)]
        else:
            pairs = [(offset, _cubic((part - offset).abs(), self.cubic)) for offset in range(-1, 3)]
        return [((low.long() + offset).clamp(0, size - 1), weight) for offset, weight in pairs]

    def _rounded(self, at: Tensor) -> Tensor:
        if self.nearest == "floor":
            return at.floor()
        if self.nearest == "ceil":
            return at.ceil()
        return (at - 0.5).ceil() if self.nearest == "round_prefer_floor" else (at + 0.5).floor()


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


def _interpolate(x: Tensor, axis: int, taps: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    total: Tensor | None = None
    shape = [1] * x.dim()
    shape[axis] = -1
    for places, weight in taps:
        part = x.index_select(axis, places.to(x.device))
        if weight is not None:
            part = part * weight.to(device=x.device, dtype=x.dtype).reshape(shape)
        total = part if total is None else total + part
    return total


def _resize(op: Operator) -> Kernel | None:
    how = _Interpolation(
        op.text("mode", "nearest"),
        op.text("coordinate_transformation_mode", "half_pixel") if op.version >= 11 else "asymmetric",
        op.text("nearest_mode", "round_prefer_floor") if op.version >= 11 else "floor",
        op.number("cubic_coeff_a", -0.75),
    )
    unusual = (
        op.integer("antialias", 0) or op.integer("exclude_outside", 0) or how.mode not in ("nearest", "linear", "cubic")
    )
    if unusual or how.coordinates not in COORDINATES or how.nearest not in NEAREST:
        return None
    if op.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    axes, one_row = op.integers("axes"), has_one_row(op)

    def kernel(x: Tensor, *given: Tensor | None) -> Tensor:
        scales, sizes = _targets(op, given)
        for place, axis in enumerate(axes if axes is not None else range(x.dim())):
            size = x.shape[axis]
            if sizes and axis == 0 and one_row and sizes[place] == 1:
                continue  # the batch that the file fixes at 1
            new = sizes[place] if sizes else math.floor(size * scales[place])
            scale = new / size if sizes else scales[place]
            if new != size or scale != 1.0:
                x = _interpolate(x, axis % x.dim(), how.taps(size, new, scale))
        return x

    return kernel


def _targets(op: Operator, given: tuple[Tensor | None, ...]) -> tuple[list[float], list[int]]:
    """Return scales and sizes of a Resize, one of them empty."""
    if op.version < 11:
        return ([] if given[0] is None else [float(s) for s in given[0].tolist()]), []
    scales = given[1] if len(given) > 1 else None
    sizes = given[2] if len(given) > 2 else None
    if sizes is not None and sizes.numel():
        return [], [int(s) for s in sizes.tolist()]
    return ([] if scales is None else [float(s) for s in scales.tolist()]), []


def _upsample(op: Operator) -> Kernel | None:
    how = _Interpolation(op.text("mode", "nearest"), "asymmetric")
    if how.mode not in ("nearest", "linear") or op.version < 9:
        return None

    def kernel(x: Tensor, scales: Tensor) -> Tensor:
        for axis, scale in enumerate(float(s) for s in scales.tolist()):
            if scale != 1.0:
                size = x.shape[axis]
                x = _interpolate(x, axis, how.taps(size, math.floor(size * scale), scale))
        return x

    return kernel


OPERATORS: dict[str, Maker] = {"Resize": _resize, "Upsample": _upsample}
"""Operator -> maker of its kernel."""
