"""The encoders of the fixed-to-fixed code: the fast one writes the bytes of the slow one, and these are the best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.codec import fast_encoder, jit, reference_encoder
from qcompiler.codec.block_care import Care, crowded
from qcompiler.codec.xor_code import MEMORY, REGISTERS, TRELLIS, XorCode, outputs_for, place_of
from qcompiler.errors import QCompileError

needs_numba = pytest.mark.skipif(not jit.AVAILABLE, reason="numba is not installed: there is one encoder only")
quick = sorted(set(REGISTERS) - {"8-2"})


def care_of(code: XorCode, blocks: int, density: float, planes: int = 2, seed: int = 0) -> Care:
    rng = np.random.default_rng(seed)
    block, row = np.nonzero(rng.random((blocks, code.outputs)) < density)
    return Care(blocks, block, row, rng.integers(0, 2, (block.size, planes)).astype(np.uint8))


def mismatches(code: XorCode, care: Care, symbols: np.ndarray) -> list[int]:
    made = code.network.decode(symbols)[:, care.block, care.row]
    return [int(n) for n in (made != care.bits.T).sum(1)]


@needs_numba
@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(quick),
    outputs=st.integers(1, 120),
    blocks=st.integers(1, 5),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_both_encoders_write_the_same_bytes(name, outputs, blocks, density, seed):
    code = XorCode(name, outputs)
    care = care_of(code, blocks, min(density, 30 / outputs), seed=seed)
    assert np.array_equal(fast_encoder.encode(code, care), reference_encoder.encode(code, care))


@needs_numba
@pytest.mark.parametrize(("outputs", "density"), [(80, 0.1), (80, 0.25), (5, 1.0), (40, 0.0)])
def test_both_encoders_write_the_same_bytes_for_the_largest_code(outputs, density):
    code = XorCode("8-2", outputs)
    care = care_of(code, 3, density, planes=1)
    assert np.array_equal(fast_encoder.encode(code, care), reference_encoder.encode(code, care))


@pytest.mark.parametrize(("name", "blocks"), [("8-0", 1), ("8-1", 1), ("1-12", 1)])
def test_the_reference_finds_what_trying_everything_finds(name, blocks):
    code = XorCode(name, 24)
    care = care_of(code, blocks, 0.9, planes=1, seed=3)
    streams = itertools.product(range(256), repeat=code.registers + blocks) if name != TRELLIS else None
    if streams is None:  # 4 bits of the first byte are beyond the memory
        every = np.arange(1 << 20, dtype=np.uint32) << 4
        tried = np.stack([every & 255, every >> 8 & 255, every >> 16], axis=1).astype(np.uint8)
    else:
        tried = np.asarray(list(streams), np.uint8)
    best = min(min(mismatches(code, care, part)) for part in np.array_split(tried, max(1, len(tried) // 4096)))
    assert mismatches(code, care, reference_encoder.encode(code, care)) == [best]


@pytest.mark.parametrize("name", REGISTERS)
def test_the_matrix_decodes(name):
    code = XorCode(name, 21)
    rng = np.random.default_rng(1)
    symbols = rng.integers(0, 256, code.registers + 5).astype(np.uint8)
    matrix = code.network.matrix().astype(int)
    made = code.network.decode(symbols)
    for block in range(5):
        newest_first = symbols[block : block + code.registers + 1][::-1]
        bits = np.unpackbits(newest_first, bitorder="little")
        assert np.array_equal(made[block], matrix @ bits % 2)


def test_an_output_of_the_trellis_code_sees_13_bits():
    code = XorCode(TRELLIS, 26)
    for row, connections in enumerate(code.network.rows):
        phase = code.phase(row)
        seen = {place_of(phase, lag) for lag in range(MEMORY + 1)}
        assert {place for place in range(24) if connections >> place & 1} <= seen
        assert int(code.taps[row]).bit_length() <= MEMORY + 1
        assert bin(int(code.taps[row])).count("1") == bin(int(connections)).count("1")
    assert [code.phase(row) for row in (0, 4, 25)] == [0, 1, 7]


def test_no_output_is_constant():
    for seed in range(3):
        assert np.all(XorCode("8-0", 1024, seed).network.rows > 0)


def test_the_network_is_the_documented_one():
    """The connections are part of the format: another generator would need another version."""
    assert XorCode("8-1", 4).network.rows.tolist() == ROWS_8_1
    assert XorCode("1-12", 4).network.rows.tolist() == ROWS_1_12


ROWS_8_1 = [23745, 60519, 21854, 51467]
ROWS_1_12 = [23553, 8449031, 21790, 51211]


@pytest.mark.parametrize(
    ("sparsity", "outputs"), [(0.0, 8), (0.5, 16), (0.7, 26), (0.9, 80), (0.99, 800), (0.999, 1024), (1.0, 1024)]
)
def test_outputs_at_the_entropy_rate(sparsity, outputs):
    assert outputs_for(sparsity) == outputs


def test_wrong_codes_are_refused():
    with pytest.raises(QCompileError, match="there is no code '9-1'; codes are 8-0, 8-1, 8-2, 1-12"):
        XorCode("9-1", 8)
    with pytest.raises(QCompileError, match="a byte makes 1 to 1024 bits, not 0"):
        XorCode("8-1", 0)
    with pytest.raises(QCompileError, match="a stream has 1 bytes, fewer than the 2 of registers"):
        XorCode("8-2", 8).network.decode(np.zeros(1, np.uint8))


def test_crowded_places_are_thinned():
    places = np.asarray([0, 0, 0, 1, 1, 5, 5, 5, 5])
    assert crowded(places, 1, 2).tolist() == [False, False, True, False, False, False, False, True, True]
    assert crowded(places, 2, 4).tolist() == [False] * 4 + [True] + [False] * 4


@needs_numba
@pytest.mark.parametrize("name", ["8-1", "8-2", "1-12"])
def test_crowded_blocks_are_encoded_too(name):
    """More unpruned outputs than costs have room for."""
    code = XorCode(name, 400)
    care = care_of(code, 3, 1.0, planes=1)
    symbols = fast_encoder.encode(code, care)
    assert symbols.shape == (1, code.registers + 3)
    assert mismatches(code, care, symbols)[0] < 0.5 * care.row.size
