"""Encodes random sparse bits with every fixed-to-fixed code; prints efficiency, memory reduction and speed as markdown.

Usage: python -m benchmarks.fixed_to_fixed [--data ROOT] [--threads N] [--codes 8-0,8-1,1-12,8-2]

With --data, every convolution and matrix of at least 16384 weights of ROOT/models (their first weights, as many as of
random data) is pruned to S = 0.9 by magnitude and encoded, too, and a prototype in ROOT/../prototypes is built with
g++ and timed in the same run, where both are there.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.tables import markdown_table
from qcompiler.codec import jit
from qcompiler.codec.fixed_to_fixed import Encrypted, decrypt, encrypt
from qcompiler.codec.xor_code import REGISTERS, XorCode, outputs_for
from qcompiler.runtime.machine import machine_name

SEED = 0
PLANES = 8
SIZES = {"8-0": 1 << 19, "8-1": 1 << 20, "1-12": 1 << 20, "8-2": 1 << 17}
"""Code -> weights of random INT8; the search of 8-2 is a thousand times longer."""
SPARSITIES = (0.9, 0.7, 0.5)
LARGE_LAYER = 16_384
PROTOTYPE = "conv.cpp"


def random_weights(count: int, sparsity: float) -> NDArray[np.uint8]:
    """Return INT8 weights whose bits are balanced and of which a share is pruned at random."""
    rng = np.random.default_rng(SEED)
    weights = rng.integers(1, 256, count).astype(np.uint8)
    weights[rng.random(count) < sparsity] = 0
    return weights


def timed(weights: NDArray[np.uint8], code: XorCode, threads: int) -> tuple[Encrypted, float, float]:
    """Return the encoded weights, and the best Mbit of planes a second of two runs: by the clock, and of one core."""
    best, work, stored = float("inf"), float("inf"), None
    for _ in range(2):
        started, worked = time.perf_counter(), time.process_time()
        stored = encrypt(weights, PLANES, code, threads=threads)
        best, work = min(best, time.perf_counter() - started), min(work, time.process_time() - worked)
    if stored is None or not np.array_equal(decrypt(stored), weights.reshape(-1)):
        raise SystemExit(f"code {code.name} is not lossless")
    bits = weights.size * PLANES / 1e6
    return stored, bits / best, bits / work


def mean_efficiency(stored: Encrypted) -> float:
    """Return the mean of all planes that have streams, in percent."""
    return float(np.mean(list(stored.efficiency().values()) or [100.0]))


def random_rows(codes: Sequence[str], threads: int) -> Iterator[list[str]]:
    """Yield a row for every code and sparsity."""
    for name in codes:
        encrypt(random_weights(4096, 0.9), PLANES, XorCode(name, 80))  # compiled before it is timed
        for sparsity in SPARSITIES:
            code = XorCode(name, outputs_for(sparsity))
            weights = random_weights(SIZES[name] if sparsity == SPARSITIES[0] else SIZES[name] // 4, sparsity)
            speeds = []
            for number in sorted({1, threads}):
                stored, speed, work = timed(weights, code, number)
                speeds.append(speed)
            speeds.append(work)
            bits = weights.size * PLANES / 1e6
            cells = [
                f"{mean_efficiency(stored):.2f}",
                f"{stored.memory_reduction():.2f}",
                *(f"{s:.1f}" for s in speeds),
            ]
            yield [name, f"{sparsity:g}", str(code.outputs), f"{bits:.1f}", *cells]


def large_layers(root: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the weights of convolutions and products of the models below a data root, by model and name."""
    for path in sorted((root / "models").glob("*.onnx")):
        graph = onnx.load(str(path)).graph
        used = {n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and len(n.input) > 1}
        for tensor in graph.initializer:
            if tensor.name in used and np.prod(tensor.dims) >= LARGE_LAYER:
                yield path.stem, onnx.numpy_helper.to_array(tensor).astype(np.float32)


def magnitude_pruned(weight: NDArray[np.float32], sparsity: float) -> NDArray[np.uint8]:
    """Return int8 codes of a weight, as bytes, with the smallest magnitudes set to 0."""
    codes = np.clip(np.rint(weight / (np.abs(weight).max() / 127)), -127, 127).astype(np.int8)
    kept = np.abs(weight) > np.quantile(np.abs(weight), sparsity)
    return np.where(kept & (codes != 0), codes, 0).astype(np.int8).view(np.uint8)


def real_rows(root: Path, name: str, threads: int) -> Iterator[list[str]]:
    """Yield a row per model: the mean efficiency of its large layers, with and without interleaving."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for model, weight in large_layers(root):
        numbers = magnitude_pruned(weight.reshape(-1)[: SIZES[name]], SPARSITIES[0])
        code = XorCode(name, outputs_for(float((numbers == 0).mean())))
        plain, spread = (encrypt(numbers, PLANES, code, interleaved=i, threads=threads) for i in (False, True))
        random = encrypt(_shuffled_bits(numbers), PLANES, code, threads=threads)
        found.setdefault(model, []).append(tuple(map(mean_efficiency, (plain, spread, random))))  # type: ignore[arg-type]
    for model, values in found.items():
        means = np.mean(values, axis=0)
        worst = min(spread - random for _, spread, random in values)
        yield [model, str(len(values)), *(f"{v:.2f}" for v in means), f"{worst:+.2f}"]


def _shuffled_bits(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return random weights of as many bytes, at random places, as many of them 0."""
    rng = np.random.default_rng(SEED)
    made = np.zeros(numbers.size, np.uint8)
    kept = rng.permutation(numbers.size)[: np.count_nonzero(numbers)]
    made[kept] = rng.integers(1, 256, kept.size)
    return made


def prototype_speed(root: Path) -> float | None:
    """Return Mbit/s of a prototype of the 1-12 code on one core, None where it or a compiler is not there."""
    source = root.resolve().parent / "prototypes" / "fixed_to_fixed" / PROTOTYPE
    if not source.exists() or shutil.which("g++") is None:
        return None
    with TemporaryDirectory() as folder:
        built = Path(folder) / "prototype.so"
        command = ["g++", "-O3", "-march=native", "-shared", "-fPIC", "-o", str(built), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        encode = ctypes.CDLL(str(built)).conv1
        return _prototype_run(encode)


def _prototype_run(encode: Callable[..., int]) -> float:
    rng, steps, outputs = np.random.default_rng(SEED), 100_000, 10
    words = [rng.integers(0, 1 << outputs, n).astype(np.uint32) for n in (8 * 13, steps)]
    mask = ((rng.random((steps, outputs)) >= 0.9) @ (1 << np.arange(outputs))).astype(np.uint32)
    found, best = np.zeros(steps, np.uint8), float("inf")
    places = [a.ctypes.data_as(ctypes.c_void_p) for a in (words[0], words[1], mask, found)]
    for _ in range(3):
        started = time.perf_counter()
        encode(12, 8, *places[:3], ctypes.c_long(steps), places[3])
        best = min(best, time.perf_counter() - started)
    return steps * outputs / best / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="ROOT")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codes", default=",".join(SIZES))
    options = parser.parse_args(arguments)
    codes = [name for name in options.codes.split(",") if name in REGISTERS]
    compiled = "compiled by numba" if jit.AVAILABLE else "NumPy: numba is not installed"
    print(f"{machine_name()}; encoder {compiled}; seed {SEED}; INT8, corrections counted, masks not.\n")
    headings = ["code", "S", "bits a byte", "Mbit", "E %", "memory reduction %", "Mbit/s, 1 thread"]
    headings += [f"Mbit/s, {options.threads} threads"] if options.threads > 1 else []
    headings.append("a second of a core")
    print(markdown_table(headings, list(random_rows(codes, options.threads))))
    if options.data is not None:
        speed = prototype_speed(options.data)
        found = "not there, or not built" if speed is None else f"{speed:.1f} Mbit/s"
        print(f"\nThe prototype of 1-12 in the same run, one core, search alone: {found}.\n")
        headings = ["model, S = 0.9", "layers", "E % as stored", "interleaved", "random", "worst against random"]
        for name in codes:
            print(f"\nCode {name}:\n")
            print(markdown_table(headings, list(real_rows(options.data, name, options.threads))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
