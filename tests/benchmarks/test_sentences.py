"""The sentence model's benchmark: what it calibrates on, and how a loss is counted."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sentence_model import Scored, Truth, by_length, token_counts
from benchmarks.sentences import FIRST_WORD, LENGTH, SENTENCES, write_calibration

CAPTIONS = [[101, *range(2000, 2000 + length), 102] for length in (5, 12, 7, 12) * 100]


def test_every_second_calibration_sentence_has_half_of_its_words_exchanged(tmp_path):
    write_calibration(tmp_path / "calibration.npz", CAPTIONS)
    with np.load(tmp_path / "calibration.npz") as arrays:
        ids, mask = arrays["input_ids"], arrays["attention_mask"]
    assert ids.shape == mask.shape == (SENTENCES, LENGTH)
    assert (ids[:, [0, -1]] == (101, 102)).all()
    assert (ids[::2, 1:-1] == np.arange(2000, 2000 + LENGTH - 2)).all()
    exchanged = ids[1::2, 1:-1] != np.arange(2000, 2000 + LENGTH - 2)
    assert exchanged.mean() == pytest.approx(0.5, abs=0.03)
    assert ids[:, 1:-1].min() >= FIRST_WORD


def truth(similarity):
    """Four pairs in two sets whose gold similarity rises."""
    vectors = np.tile([1.0, 0.0], (8, 1))
    original = Scored(vectors, np.asarray(similarity, np.float64))
    return Truth([], np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]), np.array(["a"] * 3 + ["b"] * 3), original)


def test_a_loss_is_positive_where_the_order_of_pairs_is_lost():
    known = truth([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    assert known.correlations(known.original) == pytest.approx([100, 100])
    damaged = Scored(known.original.vectors, np.array([0.3, 0.2, 0.1, 0.1, 0.2, 0.3]))
    pooled, sets = known.losses([damaged])
    assert sets == pytest.approx(100)
    assert pooled == pytest.approx(100)
    assert known.losses([known.original, damaged])[1] == pytest.approx(50)


def test_the_pooled_figure_and_the_mean_of_the_sets_differ():
    known = truth([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    shifted = Scored(known.original.vectors, np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.8]))
    pooled, sets = known.losses([shifted])
    assert pooled > 10
    assert sets == pytest.approx(0)


def test_intervals_hold_the_loss_and_narrow_with_more_pairs():
    widths = []
    for count in (30, 300):
        rng = np.random.default_rng(0)
        gold, sets = rng.random(2 * count), np.array(["a"] * count + ["b"] * count)
        vectors = np.ones((4 * count, 1))
        known = Truth([], gold, sets, Scored(vectors, gold + 0.1 * rng.standard_normal(gold.size)))
        damaged = Scored(vectors, gold + 0.3 * rng.standard_normal(gold.size))
        bounds = known.intervals([damaged])
        losses = known.losses([damaged])
        assert (bounds[:, 0] < losses).all()
        assert (losses < bounds[:, 1]).all()
        widths.append(bounds[:, 1] - bounds[:, 0])
    assert (widths[1] < widths[0] / 2).all()


def test_cosines_are_means_over_sentences():
    known = truth([0.0] * 6)
    turned = known.original.vectors.copy()
    turned[:4] = [0.0, 1.0]
    assert known.cosine(Scored(turned, known.original.similarity)) == pytest.approx(0.5)


def test_sentences_are_grouped_by_length():
    assert by_length([[1, 2], [1], [3, 4]]) == [[1], [0, 2]]
    assert token_counts([[1, 2], [2]])[:3].tolist() == [0, 1, 2]
