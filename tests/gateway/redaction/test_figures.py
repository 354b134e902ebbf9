"""Figures as they are written and spoken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.redaction.figures import read


def digits(text: str) -> str:
    return "".join(figure.digits for figure in read(text).figures)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("four one one one", "4111"),
        ("4 1 1 1 1111", "41111111"),
        ("4-1-1-1, 1111.", "41111111"),
        ("double four one", "441"),
        ("triple nine, double oh", "99900"),
        ("forty-one eleven", "4111"),
        ("forty one, twenty two", "4122"),
        ("four ones and three twos", "1111222"),
        ("four oh oh seven", "4007"),
        ("4 o 7", "407"),
        ("nine nought five", "905"),
        ("one hundred", "100"),
        ("Fünf 4 ١٢", "412"),
        ("oh, I said that", ""),
        ("At 10. Oh, I see", "10"),
        ("I want to go for it", ""),
        ("4 1 for 1", "4141"),
        ("Won't you wait?", ""),
        ("", ""),
    ],
)
def test_digits_are_read_as_callers_say_them(text: str, expected: str) -> None:
    assert digits(text) == expected


@pytest.mark.parametrize("text", ["12 dollars", "$1,200", "10:30", "5 percent", "ten milligrams", "16 digits", "9 am"])
def test_what_counts_something_is_known(text: str) -> None:
    assert [figure.quantity for figure in read(text).figures][-1]


@pytest.mark.parametrize("text", ["4111:1111", "10:30:45", "$4 1 1", "1200 Main Street"])
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert not all(figure.quantity for figure in read(text).figures)


def test_words_between_figures_are_counted_but_not_fillers() -> None:
    figures = read("My number is, um, 41 and then the big 11, okay, so 12 goes there now").figures
    assert [figure.gap for figure in figures] == [1, 1, 0]
    assert read("My number is, um, 41 and then goes away now").tail == 2


@given(st.text())
def test_any_text_is_read_and_places_lie_in_it(text: str) -> None:
    last = 0
    for figure in read(text).figures:
        assert last <= figure.start < figure.end <= len(text)
        assert figure.digits.isdigit()
        last = figure.end


@pytest.mark.parametrize("text", ["so 1 8 times when", "one eight times", "double four two days"])
def test_digits_one_by_one_count_nothing(text: str) -> None:
    assert not any(figure.quantity for figure in read(text).figures)
