"""Figures to words and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rehearsal.heard_text import digit_runs, read_date, read_digits, read_name, read_words
from model.rehearsal.speech_text import cardinal, digit_by_digit, ordinal, sentences, speakable, year


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$1,200", "Twelve hundred dollars"),
        (
            "It was $1,250.50, then $0.50.",
            "It was one thousand two hundred fifty dollars and fifty cents, then fifty cents.",
        ),
        ("a $2.5 million loan and $1", "a two point five million dollars loan and one dollar"),
        ("£3.20", "Three pounds and twenty pence"),
        ("up to $35 or 2.7%", "up to thirty-five dollars or two point seven percent"),
        ("from 9 AM to 5 PM", "from nine AM to five PM"),
        ("at 9:30 a.m. on Monday", "at nine thirty AM on Monday"),
        ("We open at 9 a.m. We close at 12 p.m.", "We open at nine AM. We close at noon."),
        ("9:00-17:00", "Nine to five PM"),
        ("10-1 on Saturday, 3-5 days", "Ten to one on Saturday, three to five days"),
        ("call (415) 555-0123", "call four one five, five five five, zero one two three"),
        ("or +1 415 555 0123", "or one, four one five, five five five, zero one two three"),
        ("dial 911 or 988", "dial nine one one or nine eight eight"),
        ("card 4111 1111 1111 1111", "card four one one one, one one one one, one one one one, one one one one"),
        ("the card ending in 4521", "the card ending in four five two one"),
        ("account 00123456", "account zero zero one two, three four five six"),
        ("order MX-4471", "order M X, four four seven one"),
        ("on 3/5/2024, or 2024-03-05", "on March fifth, twenty twenty-four, or March fifth, twenty twenty-four"),
        ("March 3rd, 1980", "March third, nineteen eighty"),
        ("the 21st of May", "the twenty-first of May"),
        ("10 mg and 1 mg", "Ten milligrams and one milligram"),
        ("40 River Street, room 12", "Forty River Street, room twelve"),
        ("Dr. Johnson & Co, 24/7", "Doctor Johnson and Co, twenty-four seven"),
        ("www.bank.example and me@bank.example", "bank dot example and me at bank dot example"),
        ("No figures here, none at all!", "No figures here, none at all!"),
    ],
)
def test_figures_are_spoken(written: str, spoken: str) -> None:
    assert speakable(written) == spoken


@given(st.text(alphabet="0123456789 .,:/-$%#&ABamp", max_size=40))
def test_no_figure_is_left(text: str) -> None:
    assert not set("0123456789") & set(speakable(text))


@given(st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    sentences(speakable(text))


@given(st.text(alphabet="0123456789", min_size=3, max_size=24))
def test_digits_spoken_are_heard_again(number: str) -> None:
    assert read_digits(digit_by_digit(number)) == number
    assert read_digits(f"It's {digit_by_digit(number)}.") == number


def test_numbers() -> None:
    assert cardinal(1_234_567) == "one million two hundred thirty-four thousand five hundred sixty-seven"
    assert [ordinal(n) for n in (1, 12, 20, 21, 40, 112)] == [
        "first",
        "twelfth",
        "twentieth",
        "twenty-first",
        "fortieth",
        "one hundred twelfth",
    ]
    assert [year(n) for n in (1984, 1905, 1900, 2000, 2005, 2026)] == [
        "nineteen eighty-four",
        "nineteen oh five",
        "nineteen hundred",
        "two thousand",
        "two thousand five",
        "twenty twenty-six",
    ]


def test_sentences() -> None:
    assert sentences("Thanks. Dr. Who is in. Is J. K. there? Yes!") == [
        "Thanks.",
        "Dr. Who is in.",
        "Is J. K. there?",
        "Yes!",
    ]
    assert sentences("It costs $1.50 today") == ["It costs $1.50 today"]
    assert sentences("  ") == []


@pytest.mark.parametrize(
    ("heard", "digits"),
    [
        ("it's four one one one", "4111"),
        ("4111-1111", "41111111"),
        ("My card number is 4111, 1111, 1111, 1111.", "4111111111111111"),
        ("Sure, it is five four two five, two three three four, 3010, nine nine zero three.", "5425233430109903"),
        ("forty-one eleven", "4111"),
        ("double five triple seven oh one", "5577701"),
        ("It's for one one one", "4111"),
        ("two", "2"),
        ("nine hundred", "900"),
        ("I have one question", ""),
        ("for you", ""),
        ("I don't know", ""),
    ],
)
def test_digits_are_read(heard: str, digits: str) -> None:
    assert read_digits(heard) == digits


def test_two_numbers_are_two() -> None:
    assert digit_runs("My card is 4521 and my zip code is 90210.") == ["4521", "90210"]


@pytest.mark.parametrize(
    ("heard", "asked", "volunteered"),
    [
        ("My name is David Cohen.", "David Cohen", "David Cohen"),
        ("my name is david cohen and my card was declined", "David Cohen", "David Cohen"),
        ("This is David Cohen, my card was declined", "David Cohen", "David Cohen"),
        ("David Cohen.", "David Cohen", ""),
        ("Sure, it's David.", "David", ""),
        ("C-O-H-E-N", "Cohen", ""),
        ("Last name Cohen, first name David", "David Cohen", "David Cohen"),
        ("It's for my daughter, Anna Cohen", "Anna Cohen", ""),
        ("Mary Ann van der Berg", "Mary Ann van der Berg", ""),
        ("David speaking", "David", "David"),
        ("Yes.", "", ""),
        ("It was twelve hundred dollars. What is going on?", "", ""),
        ("Hi, my card was just declined at a Home Depot in Miami.", "", ""),
        ("I'm calling about my card", "", ""),
        ("Why do you need that?", "", ""),
        ("Okay, thank you.", "", ""),
        ("", "", ""),
    ],
)
def test_names_are_read(heard: str, asked: str, volunteered: str) -> None:
    assert read_name(heard, asked=True) == asked
    assert read_name(heard, asked=False) == volunteered


@pytest.mark.parametrize(
    ("heard", "date"),
    [
        ("How about next Tuesday?", "next Tuesday"),
        ("Ten in the morning works for me.", "ten in the morning"),
        ("Tuesday at 10:30 a.m.", "Tuesday at ten thirty AM"),
        ("tomorrow afternoon", "tomorrow afternoon"),
        ("3/5/1980", "March fifth, nineteen eighty"),
        ("I was born on May 5, 1975.", "May fifth, nineteen seventy-five"),
        ("the third of March nineteen eighty", "the third of March nineteen eighty"),
        ("Expires in March twenty twenty nine", "March twenty twenty nine"),
        ("I don't know", ""),
    ],
)
def test_dates_are_read(heard: str, date: str) -> None:
    assert read_date(heard) == date


def test_a_birth_date_is_no_weekday() -> None:
    assert read_date("next Tuesday", "birth_date") == ""
    assert read_date("March 3rd, 1980", "birth_date") == "March third, nineteen eighty"


def test_words_are_read_without_what_surrounds_them() -> None:
    assert read_words("It is lisinopril, ten milligrams.") == "lisinopril, ten milligrams"
    assert read_words("Um, the blood pressure one, please, thank you.") == "the blood pressure one"
    assert read_words("Doctor Johnson, please.") == "Doctor Johnson"


@given(st.text(max_size=80))
def test_no_text_breaks_the_readers(text: str) -> None:
    read_name(text, asked=True)
    read_date(text)
    read_words(text)
    read_digits(text)
