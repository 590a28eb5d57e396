"""Files of fixed-to-fixed streams: the documented bytes, an independent decoder, and damaged files."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompiler.codec.f2f_file import from_bytes, to_bytes
from qcompiler.codec.fixed_to_fixed import decrypt, encrypt
from qcompiler.codec.xor_code import XorCode
from qcompiler.errors import InputError
from tests.codec.test_fixed_to_fixed import sparse
from tests.codec.vector import PLANES, vector
from tests.docs.markdown import fences

GUIDE = Path(__file__).parents[2] / "docs" / "f2f-format.md"


def content() -> bytes:
    return to_bytes(encrypt(vector(), PLANES, XorCode("8-1", 40)))


def documented_decoder():
    code = fences(GUIDE.read_text(encoding="utf-8"), "python")[0]
    namespace: dict[str, object] = {}
    exec(compile(code, "f2f-format.md", "exec"), namespace)
    return namespace["decode"], code


def test_the_documented_vector():
    text = "".join(fences(GUIDE.read_text(encoding="utf-8"), "text")[0].split())
    assert content().hex() == text
    assert np.array_equal(decrypt(from_bytes(bytes.fromhex(text))), vector())


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("name", "planes", "sparsity"),
    [("8-0", 1, 0.5), ("8-1", 3, 0.75), ("1-12", 8, 0.9), ("8-1", 32, 0.9), ("1-12", 8, 0.0), ("8-1", 8, 1.0)],
)
def test_the_documented_decoder(name, planes, sparsity, interleaved):
    decode, _ = documented_decoder()
    numbers = sparse(700, sparsity, planes)
    stored = to_bytes(encrypt(numbers, planes, XorCode(name, 40), interleaved=interleaved))
    assert decode(stored) == numbers.tolist()
    assert np.array_equal(decrypt(from_bytes(stored)), numbers)


def test_the_documented_decoder_is_independent():
    decode, code = documented_decoder()
    assert "qcompiler" not in code
    assert len(code.split("def decode")[1].splitlines()) <= 31
    with pytest.raises(ValueError, match="damaged"):
        decode(content()[:-1])


def test_segments_come_back(monkeypatch):
    from qcompiler.codec import fixed_to_fixed

    monkeypatch.setitem(fixed_to_fixed.LONGEST, "8-1", 3)
    numbers = sparse(1000, 0.9)
    stored = to_bytes(encrypt(numbers, 8, XorCode("8-1", 40)))
    assert from_bytes(stored).geometry.segments == 9
    assert np.array_equal(decrypt(from_bytes(stored)), numbers)
    assert documented_decoder()[0](stored) == numbers.tolist()


# -- damaged files -------------------------------------------------------------------------------------------------


def test_every_cut_is_an_error():
    whole = content()
    for length in range(len(whole)):
        with pytest.raises(InputError):
            from_bytes(whole[:length])


def test_every_flipped_bit_is_an_error():
    whole = content()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(InputError):
            from_bytes(bytes(damaged))


def with_checksum(damaged: bytes) -> bytes:
    return damaged[:-4] + zlib.crc32(damaged[:-4]).to_bytes(4, "little")


def test_headers_that_contradict_themselves_are_errors():
    """Also where the checksum is right, so that nothing is allocated or read by a wrong size."""
    whole = content()
    refused = 0
    for position in range(4, 40):
        for value in (0, 1, 127, 255):
            damaged = bytearray(whole)
            if damaged[position] == value:
                continue
            damaged[position] = value
            try:
                numbers = decrypt(from_bytes(with_checksum(bytes(damaged))))
            except InputError:
                refused += 1
            else:
                assert numbers.size == vector().size
    assert refused > 80


def test_a_correction_behind_the_last_weight_is_an_error():
    stored = from_bytes(content())
    with pytest.raises(InputError, match="a correction of the fixed-to-fixed streams lies behind the last weight"):
        from_bytes(to_bytes(replace(stored, corrections=np.full(9, 255, np.uint8))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"", "this is no file of fixed-to-fixed streams"),
        (lambda b: b"PK34" + b[4:], "this is no file of fixed-to-fixed streams"),
        (lambda b: with_checksum(b[:4] + b"\2\0" + b[6:]), "of version 2 with flags 1; known is version 1"),
        (lambda b: b + b"\0", "have 253 bytes, their header says 252"),
        (lambda b: b[:100] + b"\0" + b[101:], "the checksum of the fixed-to-fixed streams is another"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    with pytest.raises(InputError, match=message):
        from_bytes(change(content()))
