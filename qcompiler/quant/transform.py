"""Columns of a table mixed by a matrix, so that few bits say more: the Karhunen-Loeve transform, in small integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRANSFORM_BITS = 4
LARGEST = 2 ** (TRANSFORM_BITS - 1) - 1
"""Entries are integers from -7 to 7."""
_EXACT_BITS = 24
"""Integers below two to this power, and their sums, are exact in float32."""
_RATIOS = np.linspace(0.5, 1.0, 21)
_TINY = 1e-12

Matrix = NDArray[np.float64]


def covariance(rows: NDArray[np.float32], importance: Matrix) -> Matrix:
    """Return the mean outer product of rows, weighed by their importance: float64, shape (columns, columns).

    Args:
        rows: float32, shape (rows, columns), without their mean.
        importance: float64, shape (rows,).
    """
    weighted = rows * (importance / importance.sum())[:, None]
    return np.asarray(weighted.T @ rows.astype(np.float64))


def coding_gain(moments: Matrix) -> float:
    """Return the bits a number that decorrelated columns save at equal error, at high rates.

    Half the logarithm of the arithmetic over the geometric mean of the eigenvalues.

    Source: Jayant and Noll, "Digital Coding of Waveforms", 1984, chapter 12.
    """
    powers = np.maximum(np.linalg.eigvalsh(moments), 0.0)
    mean = float(powers.mean())
    return 0.5 * float(np.log2(mean) - np.log2(np.maximum(powers, _TINY * mean)).mean()) if mean > 0 else 0.0


def chance_gain(importance: Matrix, columns: int) -> float:
    """Return the gain that uncorrelated columns show by chance, where so many rows were looked at.

    It is the expected logarithm of the determinant of a Wishart matrix, to the first order; rows of unequal importance
    count as fewer.
    """
    counted = float(importance.sum()) ** 2 / float(np.square(importance).sum())
    return (columns + 1) / (4 * float(np.log(2.0)) * counted)


def integer_transform(moments: Matrix, metric: Matrix, group: int) -> NDArray[np.int8]:
    """Return the matrix from coefficients to columns, up to a factor: ``row = coefficients @ matrix``.

    Coefficients are uncorrelated, and in the metric an error of one costs as much as that of any other. Those of one
    group have all sizes from the largest to the smallest, so that vectors learned for groups spend their codes on the
    large ones, and one set of vectors suits all groups.

    Args:
        moments: float64, shape (columns, columns): of the rows.
        metric: float64, shape (columns, columns), positive definite: what an error of a row is, as a quadratic form.
        group: coefficients that one code stands for; divides the columns.

    Returns:
        int8, shape (columns, columns), from -7 to 7.
    """
    sizes, axes = np.linalg.eigh(metric)
    root = (axes * np.sqrt(sizes)) @ axes.T
    _, directions = np.linalg.eigh(root @ moments @ root)
    falling = directions[:, ::-1]
    matrix = np.linalg.solve(root, falling).T[_spread(len(moments), group)]
    return _rounded(matrix)


def exact_words(words: NDArray[np.float32], transform: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return vectors on the finest grid of a power of two on which sums and products with a transform are exact.

    A product in float32 then has one result, in whatever order a runtime adds.

    Args:
        words: float32, shape (planes, 256, numbers of a group): vectors of all planes add up.
        transform: int8, shape (coefficients, columns), coefficients in groups one behind the other.
    """
    largest = np.abs(words).max(1).sum(0).astype(np.float64)
    entries = np.abs(transform.astype(np.float64)).reshape(-1, words.shape[2], transform.shape[1])
    bound = float(np.einsum("g,ngc->c", largest, entries).max(initial=0.0))
    step = 2.0 ** np.ceil(np.log2(max(bound, _TINY)) + 1 - _EXACT_BITS)
    return np.asarray(np.rint(words / step) * step, np.float32)


def _spread(columns: int, group: int) -> NDArray[np.int64]:
    """Return the order of columns in which every group has one of each size, every other size from behind."""
    sizes = np.arange(columns).reshape(group, -1)
    sizes[1::2] = sizes[1::2, ::-1]
    return np.asarray(sizes.T.reshape(-1), np.int64)


def _rounded(matrix: Matrix) -> NDArray[np.int8]:
    """Return a matrix over the step, in integers, with the step that loses least."""
    steps = np.abs(matrix).max() * _RATIOS / LARGEST
    found = [np.clip(np.rint(matrix / step), -LARGEST, LARGEST) for step in steps]
    lost = [float(np.square(matrix - step * codes).sum()) for step, codes in zip(steps, found, strict=True)]
    return np.asarray(found[int(np.argmin(lost))], np.int8)
