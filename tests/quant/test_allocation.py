"""Bit allocation as an integer program, against every allocation there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import UsageError
from qcompiler.quant.allocation import Budget, Item, allocate, allocation_of, mean_limit

WIDTHS = (2, 3, 4, 6, 8)


@st.composite
def items(draw, most=5):
    """A few items whose losses are whole numbers, so that ties happen and sums are exact."""
    found = []
    for number in range(draw(st.integers(1, most))):
        widths = tuple(sorted(draw(st.sets(st.sampled_from(WIDTHS), min_size=1))))
        losses = sorted((draw(st.integers(0, 40)) for _ in widths), reverse=True)
        weights, packing = draw(st.integers(1, 200)), draw(st.sampled_from([0, 7]))
        loss = tuple(float(v) for v in losses)
        found.append(Item(name=f"w{number}", weights=weights, bits=widths, loss=loss, packing_bytes=packing))
    return found


def every(chosen):
    return [allocation_of(chosen, bits) for bits in itertools.product(*(item.bits for item in chosen))]


@settings(max_examples=80, deadline=None)
@given(items(), st.floats(0, 1))
def test_least_loss_within_bytes(chosen, share):
    known = every(chosen)
    low, high = min(a.stored_bytes for a in known), max(a.stored_bytes for a in known)
    limit = low + int(share * (high - low))
    best = min((a.loss, a.stored_bytes) for a in known if a.stored_bytes <= limit)
    found = allocate(chosen, Budget(max_bytes=limit + 1000, fixed_bytes=1000))
    assert (found.loss, found.stored_bytes) == best
    assert found.proven


@settings(max_examples=60, deadline=None)
@given(items(), st.floats(0, 1))
def test_least_bytes_within_a_loss(chosen, share):
    known = every(chosen)
    low, high = min(a.loss for a in known), max(a.loss for a in known)
    limit = low + share * (high - low)
    best = min((a.stored_bytes, a.loss) for a in known if a.loss <= limit)
    found = allocate(chosen, Budget(max_loss=limit))
    assert (found.stored_bytes, found.loss) == best


@settings(max_examples=60, deadline=None)
@given(items(), st.sampled_from([2, 3, 4, 6]))
def test_mean_bits_count_whole_bytes_without_what_unpacks_them(chosen, mean):
    limit = mean_limit(chosen, mean)
    fitting = [a for a in every(chosen) if sum(i.code_bytes(b) for i, b in zip(chosen, a.bits, strict=True)) <= limit]
    if not fitting:
        with pytest.raises(UsageError, match="on average cannot be met"):
            allocate(chosen, Budget(mean_bits=mean))
        return
    assert allocate(chosen, Budget(mean_bits=mean)).loss == min(a.loss for a in fitting)


@settings(max_examples=20, deadline=None)
@given(items(), st.randoms())
def test_the_order_of_the_items_does_not_matter(chosen, shuffler):
    budget = Budget(max_bytes=int(np.mean([a.stored_bytes for a in every(chosen)])))
    mixed = list(chosen)
    shuffler.shuffle(mixed)
    first, second = allocate(chosen, budget), allocate(mixed, budget)
    names = [dict(zip((i.name for i in part), a.bits, strict=True)) for part, a in ((chosen, first), (mixed, second))]
    assert names[0] == names[1]


def item(name="w", weights=1000, **options):
    options = {"bits": (1, 8), "loss": (1.0, 0.0), **options}
    return Item(name=name, weights=weights, **options)


def test_tiny_losses_beside_huge_ones_are_told_apart():
    chosen = [
        item("a", bits=(2, 4, 8), loss=(1e3, 1e-9, 1e-12)),
        item("b", bits=(2, 4, 8), loss=(1e3, 3e-9, 1e-12)),
        item("c", bits=(2, 4, 8), loss=(1e3, 2e-9, 1e-12)),
    ]
    assert allocate(chosen, Budget(max_bytes=2000)).bits == (4, 8, 4)


def test_latency_is_a_budget_too():
    chosen = [item("a", latency_us=(1.0, 5.0)), item("b", loss=(2.0, 0.0), latency_us=(1.0, 5.0))]
    assert allocate(chosen, Budget(max_latency_us=6.0)).bits == (1, 8)


def test_codes_take_whole_bytes():
    assert [item(weights=3).code_bytes(bits) for bits in (1, 3, 8)] == [1, 2, 3]
    assert [item(weights=3, packing_bytes=600).stored_bytes(bits) for bits in (1, 8)] == [3, 3]
    assert [item(packing_bytes=600).stored_bytes(bits) for bits in (1, 3, 8)] == [725, 975, 1000]


def test_a_mean_grants_the_rounding_to_whole_bytes():
    chosen = [item("a", weights=3, bits=(2, 8)), item("b", weights=3, bits=(2, 8))]
    assert allocate(chosen, Budget(mean_bits=2)).bits == (2, 2)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget(max_bytes=30_000, fixed_bytes=31_000),
            r"^--max-size 30KB cannot be met: 1 bit everywhere takes 32KB \(of which graph, scales and biases 31KB\)",
        ),
        (Budget(mean_bits=0.5), r"weights of 0\.5 bits on average cannot be met: 1 bit everywhere takes 1\.0"),
        (Budget(max_loss=-1.0), r"predicted-loss budget -1 cannot be met: the least that any widths reach is 0"),
        (
            Budget(max_bytes=500, max_loss=0.5),
            r"--max-size and predicted-loss budget contradict each other: .* --max-size reaches 1000 bytes at best",
        ),
    ],
)
def test_what_cannot_be_met_names_what_can(budget, message):
    with pytest.raises(UsageError, match=message):
        allocate([item()], budget)


def test_mixed_fixed_widths_are_named_as_they_are():
    with pytest.raises(UsageError, match=r"the narrowest width of every layer \(1 to 6 bits\)"):
        allocate([item(), item("v", bits=(6,), loss=(0.0,))], Budget(max_bytes=10))


def test_the_solver_prints_nothing(capfd):
    rng = np.random.default_rng(0)
    for _ in range(30):
        count = int(rng.integers(5, 40))
        scales = 10 ** rng.uniform(-6, 0, count)
        chosen = [
            item(f"w{k}", weights=int(10 ** rng.uniform(1, 6)), bits=WIDTHS, loss=tuple(s * 4.0**-b for b in WIDTHS))
            for k, s in enumerate(scales)
        ]
        allocate(chosen, Budget(mean_bits=float(rng.uniform(2.5, 7))))
    assert capfd.readouterr().out == ""
