"""scikit-learn's handwritten digits as samples for qcompile.

``python examples/digits_data.py DIR`` writes every row that training never saw into DIR: the images into
``digits.npz``, under the name of the model's input, and the digits they show into ``labels.npy``. Nothing is
downloaded; scikit-learn ships the images.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

TRAINING_ROWS = slice(256, 1000)
"""Rows that train the model; all others are free to calibrate and to score it."""


def load_images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all images, float32 (1797, 1, 8, 8) in 0..1, and their digits, int64 (1797,)."""
    digits: Any = load_digits()
    return (digits.images / 16).astype(np.float32)[:, None], digits.target.astype(np.int64)


def write_samples(folder: Path) -> int:
    """Write ``digits.npz`` and ``labels.npy`` into a folder and return the number of samples."""
    images, labels = load_images()
    unseen = np.delete(np.arange(len(images)), TRAINING_ROWS)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "digits.npz", image=images[unseen])
    np.save(folder / "labels.npy", labels[unseen])
    return len(unseen)


def main() -> int:
    """Write the samples into the folder that the command line names."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    print(f"{write_samples(folder)} labeled digits in {folder / 'digits.npz'} and {folder / 'labels.npy'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
