"""Figures and names as text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.report import words


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_301_554, "1.30 MB"),
        (52_400_000, "52.4 MB"),
        (999_999, "1.00 MB"),
        (2_469_606_195, "2.47 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_bytes(size, text):
    assert words.bytes_text(size) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "dB", "-"),
        (33.74, "dB", "33.7 dB"),
        (97.66, "%", "97.7%"),
        (0.4647, "x", "0.465x"),
        (12, "", "12"),
        (1_301_554, "bytes", "1.30 MB"),
        (0.39, "points", "0.39 points"),
        (math.nan, "dB", "nan dB"),
        (9.8, "us", "9.8 us"),
        (0.97, "share", "97.0%"),
        (0.46, "of the original", "0.46x"),
        (math.inf, "dB", "identical"),
    ],
)
def test_figures(value, unit, text):
    assert words.figure(value, unit) == text


@given(st.text(), st.integers(min_value=1, max_value=60))
def test_shortened_names_are_printable_and_fit(text, width):
    short = words.shorten(text, width)
    assert len(short) <= width
    assert short.isprintable()


@given(st.text())
def test_printable_texts_are_one_line(text):
    shown = words.printable(text)
    assert shown.isprintable()
    assert words.printable(shown) == shown


def test_both_ends_of_a_long_name_survive():
    short = words.shorten("/model/encoder/layer.0/attention/self/query/MatMul", 30)
    assert short == "/model/enco...elf/query/MatMul"


@pytest.mark.parametrize(("sqnr", "share"), [(0.0, 1.0), (20.0, 0.01), (-200.0, 1e6), (math.nan, 1e6)])
def test_noise_share(sqnr, share):
    assert words.noise_share(sqnr) == pytest.approx(share)


def test_choices_of_one_kind_are_taken_together():
    choices = {"range": "wide", "form of a": "static", "form of b": "dynamic", "form of c": "static", "way of d": "x"}
    assert words.by_kind(choices) == {"range": "wide", "form of 3": "static 2, dynamic 1", "way of d": "x"}
    assert words.by_kind({}) == {}
