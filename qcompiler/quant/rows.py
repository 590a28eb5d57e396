"""Rows of a table as codes of a few bits: learned vectors, signs with factors, and the search that fits them.

A row ``w`` of ``n`` numbers becomes ``scale * sum of one vector per plane and group of 8 columns``. All searches make
``(w - q)' M (w - q)`` least, where the metric ``M`` says what an error of a row does to the model's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 8
"""Numbers that one byte stands for."""
WORDS = 256
CHUNK = 512
"""Rows that are worked on at a time: their distances to all words stay in the cache."""
_TRAINED = 40_000
"""Groups of 8 numbers that words are learned from."""
_TINY = 1e-12

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows:
    """Rows of a table in a number of planes.

    Attributes:
        codes: uint8, shape (rows, planes, groups of 8 columns).
        scales: float16, shape (rows, 1) for words, (rows, planes) for signs.
        error: float64, shape (rows,): what is left of ``(w - q)' M (w - q)``.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    error: NDArray[np.float64]


def padded(rows: Rows) -> Rows:
    """Return rows with columns of zeros behind them, up to a multiple of 8."""
    return np.pad(rows, [(0, 0), (0, -rows.shape[1] % GROUP)])


def sign_words() -> NDArray[np.float32]:
    """Return the signs that the bits of a byte stand for: float32, shape (256, 8), lowest bit first, 1 is +1."""
    bits = np.unpackbits(np.arange(WORDS, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return bits.astype(np.float32) * 2 - 1


def error_power(errors: Rows, metric: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return ``e' M e`` of every row: float64, shape (rows,)."""
    return np.asarray(np.einsum("rn,rn->r", errors @ metric.astype(np.float32), errors, dtype=np.float64))


def learn_words(rows: Rows, planes: int, seed: int, rounds: int = 12) -> NDArray[np.float32]:
    """Return vectors of 8 numbers for every plane, learned from rows of unit power.

    Every plane is learned by k-means from what the planes before it leave. From the second plane on, word 0 is the
    zero vector, so that a row without the plane adds nothing.

    Args:
        rows: float32, shape (rows, multiple of 8).
        planes: number of planes.
        seed: of the random start.
        rounds: of k-means.

    Returns:
        float32, shape (planes, 256, 8).
    """
    rng = np.random.default_rng(seed)
    power = np.sqrt(np.square(rows).mean(1, keepdims=True))
    groups = (rows / np.maximum(power, _TINY)).astype(np.float32).reshape(-1, GROUP)
    rest = groups[np.sort(rng.choice(len(groups), min(_TRAINED, len(groups)), replace=False))]
    words = np.zeros((planes, WORDS, GROUP), np.float32)
    for plane in range(planes):
        words[plane] = _k_means(rest, rng, rounds, zero=plane > 0)
        rest = rest - words[plane][_nearest(rest, words[plane])]
    return words


def encode_words(rows: Rows, metric: NDArray[np.float64], words: NDArray[np.float32], sweeps: int = 2) -> EncodedRows:
    """Return rows as sums of words times one scale per row.

    Starts from the nearest words, plane by plane, and then goes ``sweeps`` times through all groups of columns: with
    all others fixed, each takes the word that leaves the least error in the metric, and the scale is fitted anew.

    Args:
        rows: float32, shape (rows, multiple of 8).
        metric: float64, shape (columns, columns), positive definite.
        words: float32, shape (planes, 256, 8).
        sweeps: passes over all groups.
    """
    parts = [_Words(rows[i : i + CHUNK], metric, words).encode(sweeps) for i in range(0, len(rows), CHUNK)]
    return _joined(parts, rows, len(words))


def encode_signs(rows: Rows, metric: NDArray[np.float64], planes: int, sweeps: int = 2) -> EncodedRows:
    """Return rows as sums of signs times one factor per plane.

    ``sweeps=0`` is the greedy solution: each plane takes the signs and the mean magnitude of what is left. With sweeps
    signs and factors alternate: each number takes the best of its ``2**planes`` sums in the metric, and the factors
    are the least-squares fit to the signs.

    Source: Guo et al., "Network Sketching", CVPR 2017 (greedy); Xu et al., "Alternating Multi-bit Quantization",
    ICLR 2018. Unlike there, a sum is chosen by the error of the whole row, not of its own number.
    """
    parts = [_Signs(rows[i : i + CHUNK], metric, planes).encode(sweeps) for i in range(0, len(rows), CHUNK)]
    return _joined(parts, rows, planes)


def words_of(codes: NDArray[np.uint8], words: NDArray[np.float32]) -> Rows:
    """Return the sum of the words that codes name: float32, shape (rows, columns)."""
    total = words[0][codes[:, 0]]
    for plane in range(1, codes.shape[1]):
        total = total + words[plane][codes[:, plane]]
    return np.asarray(total.reshape(len(codes), -1), np.float32)


def _joined(parts: Sequence[EncodedRows], rows: Rows, planes: int) -> EncodedRows:
    if not parts:
        empty = np.zeros((0, planes, rows.shape[1] // GROUP), np.uint8)
        return EncodedRows(empty, np.zeros((0, 1), np.float16), np.zeros(0))
    codes, scales, errors = ([getattr(p, name) for p in parts] for name in ("codes", "scales", "error"))
    return EncodedRows(np.concatenate(codes), np.concatenate(scales), np.concatenate(errors))


def _nearest(points: Rows, words: Rows) -> NDArray[np.int64]:
    return np.concatenate(
        [
            np.argmin(points[i : i + 4096] @ (-2 * words.T) + np.square(words).sum(1), axis=1)
            for i in range(0, len(points), 4096)
        ]
    )


def _k_means(points: Rows, rng: np.random.Generator, rounds: int, *, zero: bool) -> Rows:
    words = points[rng.choice(len(points), WORDS, replace=len(points) < WORDS)].copy()
    for _ in range(rounds):
        words[0] = 0 if zero else words[0]
        nearest = _nearest(points, words)
        count = np.bincount(nearest, minlength=WORDS)
        sums = np.stack([np.bincount(nearest, points[:, j], minlength=WORDS) for j in range(GROUP)], axis=1)
        again = points[rng.choice(len(points), WORDS)]  # for words that no point is nearest to
        words = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], again).astype(np.float32)
    words[0] = 0 if zero else words[0]
    return words


class _Words:
    """One chunk of rows on its way to words."""

    def __init__(self, rows: Rows, metric: NDArray[np.float64], words: NDArray[np.float32]) -> None:
        self.rows, self.words = rows, words
        self.metric = metric.astype(np.float32)
        self.codes = np.zeros((len(rows), len(words), rows.shape[1] // GROUP), np.uint8)
        power = np.maximum(np.sqrt(np.square(rows).mean(1, keepdims=True)), _TINY)
        rest = (rows / power).astype(np.float32).reshape(-1, GROUP)
        for plane, own in enumerate(words):
            nearest = _nearest(rest, own)
            self.codes[:, plane] = nearest.reshape(len(rows), -1)
            rest = rest - own[nearest]

    def encode(self, sweeps: int) -> EncodedRows:
        for _ in range(sweeps):
            self._sweep()
        sums = words_of(self.codes, self.words)
        scales = self._scale(sums)[:, None].astype(np.float16)
        error = error_power(self.rows - scales.astype(np.float32) * sums, self.metric)
        return EncodedRows(self.codes, scales, error)

    def _scale(self, sums: Rows) -> NDArray[np.float32]:
        """Return the scales that leave the least error."""
        pulled = sums @ self.metric
        own = np.maximum((pulled * sums).sum(1), _TINY)
        return np.asarray((pulled * self.rows).sum(1) / own, np.float32)

    def _sweep(self) -> None:
        sums = words_of(self.codes, self.words)
        scale = self._scale(sums)[:, None]
        # What the error of a row would pull at every number: M (w - q).
        pull = (self.rows - scale * sums) @ self.metric
        groups = np.diag(self.metric).reshape(-1, GROUP).sum(1)
        for group in np.argsort(-groups, kind="stable"):
            columns = slice(GROUP * group, GROUP * (group + 1))
            block = self.metric[columns, columns]
            for plane, words in enumerate(self.words):
                old = words[self.codes[:, plane, group]]
                wanted = pull[:, columns] + scale * (old @ block)
                own = np.einsum("wi,ij,wj->w", words, block, words)
                best = np.argmin(scale * own - wanted @ (2 * words.T), axis=1)
                pull -= scale * ((words[best] - old) @ self.metric[columns])
                self.codes[:, plane, group] = best


class _Signs:
    """One chunk of rows on its way to signs."""

    def __init__(self, rows: Rows, metric: NDArray[np.float64], planes: int) -> None:
        self.rows, self.metric, self.planes = rows, metric.astype(np.float32), planes
        self.signs = np.zeros((len(rows), planes, rows.shape[1]), np.float32)
        self.factors = np.zeros((len(rows), planes), np.float32)
        rest = rows.astype(np.float32)
        for plane in range(planes):
            self.signs[:, plane] = np.where(rest >= 0, 1, -1)
            self.factors[:, plane] = np.abs(rest).mean(1)
            rest = rest - self.factors[:, plane, None] * self.signs[:, plane]

    def encode(self, sweeps: int) -> EncodedRows:
        for _ in range(sweeps):
            self._sweep()
            self._fit()
        factors = self.factors.astype(np.float16)
        error = error_power(self.rows - self._sum(factors.astype(np.float32)), self.metric)
        packed = np.packbits(self.signs > 0, axis=2, bitorder="little")
        return EncodedRows(packed, factors, error)

    def _sum(self, factors: NDArray[np.float32]) -> Rows:
        return np.asarray(np.einsum("rp,rpn->rn", factors, self.signs), np.float32)

    def _sweep(self) -> None:
        patterns = 1 - 2 * ((np.arange(2**self.planes)[:, None] >> np.arange(self.planes)) & 1)
        sums = self.factors @ patterns.T.astype(np.float32)
        current = np.ascontiguousarray(self._sum(self.factors).T)
        pull = np.ascontiguousarray(((self.rows - current.T) @ self.metric).T)
        own = np.diag(self.metric)
        every = np.arange(len(self.rows))
        for column in np.argsort(-own, kind="stable"):
            wanted = current[column] + pull[column] / own[column]
            best = np.abs(wanted[:, None] - sums).argmin(1)
            moved = sums[every, best] - current[column]
            pull -= self.metric[:, column, None] * moved
            current[column] += moved
            self.signs[:, :, column] = patterns[best]

    def _fit(self) -> None:
        pulled = self.signs @ self.metric
        gram = (pulled @ self.signs.transpose(0, 2, 1)).astype(np.float64)
        right = np.einsum("rpn,rn->rp", pulled, self.rows, dtype=np.float64)
        # Two planes with the same signs make the system singular.
        ridge = 1e-6 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(self.planes) + _TINY * np.eye(
            self.planes
        )
        self.factors = np.linalg.solve(gram + ridge, right[..., None])[..., 0].astype(np.float32)


def encode_grid(
    rows: Rows, bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float16]]:
    """Return rows on grids of whole numbers: one offset per row, one scale per block of columns.

    A number is ``(code - 2**(bits - 1)) * scale + offset``. The offset puts the grid in the middle of the row, because
    half of the codes and one more lie below 0. Scales leave the least squared error of a search over clipped ranges.

    Args:
        rows: float32, shape (rows, multiple of ``block``).
        bits: width of a code, 2 to 8.
        block: columns that share a scale.

    Returns:
        uint8 of shape (rows, columns), float32 of shape (rows, blocks), float16 of shape (rows, 1).
    """
    half = 2 ** (bits - 1)
    ratios = np.linspace(0.25, 1.0, 26, dtype=np.float32)
    widest = np.maximum(np.abs(rows).max(1, keepdims=True), _TINY) / (half - 0.5)
    middle = _best_scale(rows[:, None], widest, ratios, half, centred=True)
    offset = (0.5 * middle).astype(np.float16)
    blocks = (rows - offset.astype(np.float32)).reshape(len(rows), -1, block)
    widest = np.maximum(np.abs(blocks).max(2), _TINY) / (half - 0.5)
    scale = _best_scale(blocks, widest, ratios, half, centred=False)
    codes = (_on_grid(blocks, scale, half) + half).astype(np.uint8).reshape(rows.shape)
    return codes, scale, offset


def _best_scale(
    blocks: Rows, widest: NDArray[np.float32], ratios: NDArray[np.float32], half: int, *, centred: bool
) -> NDArray[np.float32]:
    """Return the scale of every block that leaves the least squared error: float32, shape (rows, blocks).

    Args:
        blocks: float32, shape (rows, blocks, columns).
        widest: float32, shape (rows, blocks): the scale that cuts nothing off.
        ratios: shares of it to try.
        half: half of the codes.
        centred: the grid is shifted by half of each scale.
    """
    best, scale = np.full(widest.shape, np.inf), widest.astype(np.float32)
    for ratio in ratios:
        tried = (widest * ratio).astype(np.float32)
        shifted = blocks - 0.5 * tried[..., None] if centred else blocks
        left = shifted - tried[..., None] * _on_grid(shifted, tried, half)
        error = np.square(left).sum(2, dtype=np.float64)
        scale, best = np.where(error < best, tried, scale), np.minimum(error, best)
    return scale


def _on_grid(blocks: Rows, scale: NDArray[np.float32], half: int) -> NDArray[np.float32]:
    return np.asarray(np.clip(np.rint(blocks / scale[..., None]), -half, half - 1), np.float32)
