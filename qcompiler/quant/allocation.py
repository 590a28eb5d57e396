"""Bit allocation: which layer gets how many bits, as an exact integer program.

Every item (a weight, with all layers that share it) takes one of its widths. The predicted losses of items add
up, so do bytes and microseconds; one sum is made least while the others stay within their budgets. That is the
multiple-choice knapsack problem, solved by HiGHS to proven optimality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.quant.highs import Row, choose_one_each

SECONDS = 20.0
"""Limit of one integer program; the networks of the test suite take milliseconds."""
RESOLUTION = 1e3
"""The objective is scaled to this, far above the solver's absolute tolerance of 1e-6."""
ROUNDS = 8
ROUNDING = 1e-9
"""Sums in floating point may exceed a limit by this share of it; no whole byte is lost in that."""
TIE = 1e-7
"""Relative difference of what is made least below which the other of loss and bytes decides."""

MAX_SIZE, MEAN_BITS, MAX_LATENCY, MAX_LOSS = "--max-size", "--bits", "latency budget", "predicted-loss budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One weight and the widths it may take.

    Attributes:
        name: of the weight; unique.
        weights: how many numbers it holds.
        bits: the widths, rising, at least one; a single one is fixed.
        loss: predicted rise of the loss at each width, at least 0.
        packing_bytes: what unpacking costs in the file at every width below 8 bits.
        latency_us: microseconds at each width; empty where that is not known.
    """

    name: str
    weights: int
    bits: tuple[int, ...]
    loss: tuple[float, ...]
    packing_bytes: int = 0
    latency_us: tuple[float, ...] = ()

    def code_bytes(self, bits: int) -> int:
        """Return the bytes of the packed codes alone."""
        return -(-bits * self.weights // 8)

    def stored_bytes(self, bits: int) -> int:
        """Return the bytes of the codes and of what unpacks them; whole bytes are kept where packing saves nothing."""
        return min(self.code_bytes(bits) + self.packing_bytes, self.weights) if bits < 8 else self.weights

    def loss_at(self, bits: int) -> float:
        """Return the predicted rise of the loss at one of the widths."""
        return self.loss[self.bits.index(bits)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of an allocation; None is no limit.

    Attributes:
        max_bytes: of the whole file.
        fixed_bytes: what of the file is no item: graph, scales, biases.
        mean_bits: codes take at most this many bits a weight, by stored bytes.
        max_latency_us: sum over the items.
        max_loss: predicted loss; with it bytes are made least, without it the loss is.
    """

    max_bytes: int | None = None
    fixed_bytes: int = 0
    mean_bits: float | None = None
    max_latency_us: float | None = None
    max_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A width for every item, in the order of the items.

    Attributes:
        loss: predicted rise of the loss.
        stored_bytes: of all items, without ``fixed_bytes``.
        mean_bits: stored bits of the codes a weight.
        proven: no better one exists; False where the solver ran out of time.
    """

    bits: tuple[int, ...]
    loss: float
    stored_bytes: int
    mean_bits: float
    proven: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Limit:
    """One budget as a row of the program: the sum of ``amounts`` of the options taken is at most ``limit``."""

    flag: str
    amounts: NDArray[np.float64]
    limit: float


def allocation_of(items: Sequence[Item], bits: Sequence[int], *, proven: bool = True) -> Allocation:
    """Return the totals of given widths, one an item."""
    pairs = list(zip(items, bits, strict=True))
    weights = sum(i.weights for i in items)
    return Allocation(
        bits=tuple(bits),
        loss=float(sum(i.loss_at(b) for i, b in pairs)),
        stored_bytes=sum(i.stored_bytes(b) for i, b in pairs),
        mean_bits=8.0 * sum(i.code_bytes(b) for i, b in pairs) / max(weights, 1),
        proven=proven,
    )


def allocate(items: Sequence[Item], budget: Budget) -> Allocation:
    """Return the widths of least predicted loss within the budgets, or of least bytes within ``max_loss``.

    Of several as good the one with fewer bytes is taken (or with less loss), and the order in which items are
    given does not matter.

    Raises:
        UsageError: the budgets cannot be met; the message names the nearest that can.
    """
    order = sorted(range(len(items)), key=lambda i: items[i].name)
    program = _Program([items[i] for i in order])
    limits = _limits(program, budget)
    _refuse_impossible(program, budget, limits)
    first, second = (program.loss, program.bytes) if budget.max_loss is None else (program.bytes, program.loss)
    chosen, proven = program.solve(first, limits, second)
    if chosen is None:
        raise UsageError(_contradiction(program, budget, limits))
    bits = dict(zip(order, program.bits_of(chosen), strict=True))
    return allocation_of(items, [bits[i] for i in range(len(items))], proven=proven)


class _Program:
    """The integer program over one 0/1 variable for every option of every item."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        pairs = [(number, item, bits) for number, item in enumerate(items) for bits in item.bits]
        self.owner = np.asarray([number for number, _, _ in pairs], np.int64)
        self.bits = np.asarray([bits for _, _, bits in pairs], np.int64)
        self.loss = np.asarray([item.loss_at(bits) for _, item, bits in pairs], np.float64)
        self.bytes = np.asarray([item.stored_bytes(bits) for _, item, bits in pairs], np.float64)
        self.codes = np.asarray([item.code_bytes(bits) for _, item, bits in pairs], np.float64)
        timed = all(item.latency_us for item in items)
        times = [item.latency_us[item.bits.index(bits)] if timed else 0.0 for _, item, bits in pairs]
        self.latency = np.asarray(times, np.float64)

    def bits_of(self, chosen: NDArray[np.int64]) -> list[int]:
        return [int(b) for b in self.bits[chosen]]

    def total(self, amounts: NDArray[np.float64], chosen: NDArray[np.int64]) -> float:
        return float(amounts[chosen].sum())

    def least(self, amounts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the least amount of every item."""
        found = np.full(len(self.items), np.inf)
        np.minimum.at(found, self.owner, amounts)
        return found

    def solve(
        self, cost: NDArray[np.float64], limits: Sequence[_Limit], tie: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.int64] | None, bool]:
        """Return the options (one an item) of least cost within the limits, and whether that is proven.

        None stands for "there are none". The first run finds what can be reached at all; the next leaves
        out every option that alone costs more than that, and scales the rest, so that a loss of 1e-6 beside
        one of 1e3 is still told from 0. Among equal costs the least sum of ``tie`` is taken.
        """
        excess = cost - self.least(cost)[self.owner]
        finer = np.zeros_like(cost) if tie is None else tie / max(float(np.abs(tie).max()) * len(self.items), 1e-300)
        best, proven, reach = None, True, float(excess.max(initial=0.0))
        for _ in range(ROUNDS):
            found, proven = self._within(excess, reach, limits, finer)
            if found is None:
                return best, proven
            before, best = reach, found
            reach = self.total(excess, found)
            if reach >= before * 0.5 or reach <= 0.0:
                break
        return best, proven

    def _within(
        self, excess: NDArray[np.float64], reach: float, limits: Sequence[_Limit], finer: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64] | None, bool]:
        """Solve once; what the solver's tolerance lets through a limit is taken off that limit, and it runs again."""
        bounds = [limit.limit for limit in limits]
        scale = RESOLUTION / reach if reach > 0 else 1.0
        allowed = excess <= reach * (1 + TIE)
        cost = (excess * scale + finer * RESOLUTION * TIE) * allowed
        for _ in range(ROUNDS):
            rows = [self._scaled(limit, bound) for limit, bound in zip(limits, bounds, strict=True)]
            chosen, proven = choose_one_each(self.owner, cost, allowed, rows, SECONDS)
            if chosen is None:
                return None, proven
            over = [self.total(limit.amounts, chosen) - limit.limit for limit in limits]
            if all(amount <= ROUNDING * abs(limit.limit) for amount, limit in zip(over, limits, strict=True)):
                return chosen, proven
            bounds = [b - max(amount, 0.0) for b, amount in zip(bounds, over, strict=True)]
        return None, False

    @staticmethod
    def _scaled(limit: _Limit, bound: float) -> Row:
        """Return a row in the unit in which the solver's absolute tolerance is a small share of the limit."""
        unit = RESOLUTION / max(abs(limit.limit), 1e-300)
        return np.minimum(limit.amounts * unit, 2 * RESOLUTION), bound * unit


def _limits(program: _Program, budget: Budget) -> list[_Limit]:
    found = []
    if budget.max_bytes is not None:
        found.append(_Limit(MAX_SIZE, program.bytes, budget.max_bytes - budget.fixed_bytes))
    if budget.mean_bits is not None:
        found.append(_Limit(MEAN_BITS, program.codes, mean_limit(program.items, budget.mean_bits)))
    if budget.max_latency_us is not None:
        found.append(_Limit(MAX_LATENCY, program.latency, budget.max_latency_us))
    if budget.max_loss is not None:
        found.append(_Limit(MAX_LOSS, program.loss, budget.max_loss))
    return found


def mean_limit(items: Sequence[Item], mean_bits: float) -> int:
    """Return the bytes that codes may take at a mean width, over all items together.

    Each tensor is stored in whole bytes. Where even the narrowest widths exceed the mean by nothing but that
    rounding, the rounding is granted.
    """
    limit = int(mean_bits * sum(i.weights for i in items) // 8)
    if all(i.bits[0] <= mean_bits for i in items):
        limit = max(limit, sum(i.code_bytes(i.bits[0]) for i in items))
    return limit


def _refuse_impossible(program: _Program, budget: Budget, limits: Sequence[_Limit]) -> None:
    """Raise UsageError for the first limit that not even the most frugal options meet."""
    for limit in limits:
        least = float(program.least(limit.amounts).sum())
        if least > limit.limit:
            raise UsageError(_too_tight(program, budget, limit, least))


def _too_tight(program: _Program, budget: Budget, limit: _Limit, least: float) -> str:
    weights = sum(i.weights for i in program.items)
    if limit.flag == MAX_SIZE:
        widths = _narrowest(program.items)
        total = least + budget.fixed_bytes
        return (
            f"{MAX_SIZE} {kilobytes(budget.max_bytes or 0)} cannot be met: {widths} takes {kilobytes(total, up=True)} "
            f"(of which graph, scales and biases {kilobytes(budget.fixed_bytes, up=True)}); ask for at least that"
        )
    if limit.flag == MEAN_BITS:
        nearest = np.ceil(80 * least / max(weights, 1)) / 10
        return (
            f"weights of {budget.mean_bits:g} bits on average cannot be met: {_narrowest(program.items)} takes "
            f"{nearest:.1f}; ask for that many, or loosen the bits of a [match]"
        )
    unit = " us" if limit.flag == MAX_LATENCY else ""
    return f"{limit.flag} {limit.limit:.4g}{unit} cannot be met: the least that any widths reach is {least:.4g}{unit}"


def _narrowest(items: Sequence[Item]) -> str:
    widths = sorted({i.bits[0] for i in items})
    if len(widths) == 1:
        return f"{widths[0]} bit{'s' if widths[0] > 1 else ''} everywhere"
    return f"the narrowest width of every layer ({widths[0]} to {widths[-1]} bits)"


def _contradiction(program: _Program, budget: Budget, limits: Sequence[_Limit]) -> str:
    """Return which budgets cannot hold together, and the nearest of the first that the others allow."""
    names = " and ".join(limit.flag for limit in limits)
    for limit in limits:
        nearest, _ = program.solve(limit.amounts, [other for other in limits if other is not limit])
        if nearest is not None:
            least = program.total(limit.amounts, nearest)
            reach = kilobytes(least + budget.fixed_bytes, up=True) if limit.flag == MAX_SIZE else f"{least:.4g}"
            return f"{names} contradict each other: with the others kept, {limit.flag} reaches {reach} at best"
    return f"{names} contradict each other, even with any one of them left out; loosen two"


def kilobytes(size: float, *, up: bool = False) -> str:
    """Return a size as the command line reads it, such as ``143KB``; ``up`` rounds to the next that is enough."""
    if size < 10_000:
        return f"{int(size)} bytes"
    return f"{int(np.ceil(size / 1000)) if up else round(size / 1000)}KB"
