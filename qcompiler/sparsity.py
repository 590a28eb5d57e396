"""How many weights are to become 0, and how a user writes it."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """How many weights are to become 0.

    Attributes:
        share: of the weights of all Conv, MatMul and Gemm together, from 0 to below 1; None: as many as the file
            size asks for or, without one, as many as the floors on accuracy bear.
        allocation: "measured", each layer by what it costs, or "uniform", the same in every layer.
        pattern: (N, M) keeps N of every M neighboring input channels; the target must run it.
    """

    share: float | None
    allocation: str = "measured"
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share < 1:
            raise UsageError(f"sparsity is {self.share:g}; it is a share from 0 to below 1: some weights must stay")
        if self.pattern is not None and not 0 < self.pattern[0] < self.pattern[1]:
            raise UsageError(f"there is no {self.pattern[0]}:{self.pattern[1]}; of N:M, N is at least 1 and below M")
        if self.allocation not in ("measured", "uniform"):
            raise UsageError(f"sparsity is {self.allocation!r}; it must be one of measured, uniform")

    def __str__(self) -> str:
        """Return it as it is written."""
        if self.pattern is not None:
            return f"{self.pattern[0]}:{self.pattern[1]}"
        share = "auto" if self.share is None else f"{self.share:g}"
        return f"{share}:uniform" if self.allocation == "uniform" else share


def parse_sparsity(text: str) -> Sparsity:
    """Return the sparsity of ``0.7``, ``70%``, ``0.7:uniform``, ``auto``, ``auto:uniform`` or ``2:4``.

    Raises:
        UsageError: the text does not follow that form, or is no share below 1.
    """
    form = f"{text!r} is no sparsity; write a share such as 0.7 or 70%, 0.7:uniform, auto, or a pattern such as 2:4"
    wanted, colon, how = text.strip().lower().partition(":")
    if colon and wanted.isdecimal() and how.isdecimal():
        pattern = int(wanted), int(how)
        return Sparsity(share=1 - pattern[0] / max(pattern[1], 1), allocation="uniform", pattern=pattern)
    if colon and how != "uniform":
        raise UsageError(form)
    allocation = "uniform" if colon else "measured"
    if wanted == "auto":
        return Sparsity(share=None, allocation=allocation)
    try:
        value = float(wanted.removesuffix("%")) / (100 if wanted.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(form) from error
    return Sparsity(share=value, allocation=allocation)
