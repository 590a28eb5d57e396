"""Numbers of a few bits in a stream: the bytes themselves, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.codec import bits
from qcompiler.codec.bits import pack, packed_bytes, unpack
from qcompiler.errors import QCompileError


@st.composite
def numbers(draw):
    width = draw(st.integers(1, 8))
    values = draw(st.lists(st.integers(0, 2**width - 1), max_size=70))
    return np.asarray(values, np.uint8), width


@given(numbers())
def test_unpacking_gives_the_numbers_back(case):
    values, width = case
    packed = pack(values, width)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-values.size * width // 8),) == (packed_bytes(values.size, width),)
    assert unpack(packed, width, values.size).tolist() == values.tolist()


@given(numbers())
def test_the_stream_is_one_integer_in_little_endian(case):
    """The numbers are the digits of one large integer to the base 2**width, the first the lowest."""
    values, width = case
    whole = sum(int(value) << (index * width) for index, value in enumerate(values))
    assert pack(values, width).tobytes() == whole.to_bytes(packed_bytes(values.size, width), "little")


@pytest.mark.parametrize("width", [1, 3, 5, 8])
def test_long_streams_are_packed_in_parts(width, monkeypatch):
    values = np.random.default_rng(width).integers(0, 2**width, 200, dtype=np.uint8)
    whole = pack(values, width)
    monkeypatch.setattr(bits, "_CHUNK", 16)
    assert pack(values, width).tolist() == whole.tolist()
    assert unpack(whole, width, values.size).tolist() == values.tolist()


def test_any_shape_is_read_in_order():
    values = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert pack(values.T, 4).tolist() == pack(values.T.copy().reshape(-1), 4).tolist()
    assert pack(values, 4).tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(np.asarray([3, 8], np.uint8), 3), "the number 8 does not fit in 3 bits"),
        (lambda: pack(np.zeros(2, np.uint8), 9), "1 to 8 bits, not 9"),
        (lambda: pack(np.zeros(2, np.uint8), 0), "1 to 8 bits, not 0"),
        (lambda: unpack(np.zeros(2, np.uint8), 3, 6), "6 numbers of 3 bits take 3 bytes"),
        (lambda: unpack(np.zeros((3, 1), np.uint8), 4, 6), "take 3 bytes, not shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(QCompileError, match=message):
        call()
