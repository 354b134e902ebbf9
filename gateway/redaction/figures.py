"""Text -> the figures in it, however they are written or spoken, with their places. Pure.

Owns how "4111", "four one one one", "double four", "forty-one eleven", "four ones" and "oh" are read as
digits, and what lies between them. Judges nothing: whether figures make a card number is `numbers`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from gateway.redaction.vocabulary import (
    CURRENCY,
    FILLERS,
    MANY,
    ONES,
    REPEATS,
    SCALES,
    SOUND_ALIKE,
    TEENS,
    TENS,
    UNITS,
    ZERO_LETTERS,
)

_TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+|[^\W\d_]+(?:['’][^\W\d_]+)*|[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a row of digits or a sign; `start` and `end` are places in the text."""

    text: str
    start: int
    end: int

    @property
    def is_word(self) -> bool:
        return self.text[0].isalpha()


@dataclass(frozen=True, slots=True)
class Figure:
    """One or more digits that were said or written as one."""

    digits: str
    start: int
    end: int
    gap: int
    """Words, other than fillers, since the figure before, or since the start of the text."""
    pause: bool
    """Whether any word or sign at all, fillers included, lies between it and the figure before."""
    unsure: bool = False
    """It may be read in another way: "four hundred eleven", or a word that merely sounds like a digit."""
    quantity: bool = False
    """It counts something: dollars, hours, per cent."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The figures of a text in order, and the words other than fillers after the last one."""

    figures: tuple[Figure, ...]
    tail: int


def tokens(text: str) -> list[Token]:
    """The words, digits and signs of a text."""
    return [Token(match[0].lower().replace("’", "'"), *match.span()) for match in _TOKEN.finditer(text)]


def read(text: str) -> Reading:
    """Find the figures of a text."""
    row = tokens(text)
    figures: list[Figure] = []
    gap = 0
    place = 0
    # A turn that says nothing but "oh" may be the zero of a number that began before.
    touching = all(token.text in ZERO_LETTERS or token.text in FILLERS for token in row if token.is_word)
    while place < len(row):
        digits, used, unsure = _figure(row, place, touching)
        if not used:
            touching = touching and (row[place].text in ",-." or row[place].text in FILLERS)
            gap += row[place].is_word and row[place].text not in FILLERS
            place += 1
            continue
        first, last = row[place], row[place + used - 1]
        quantity = _is_quantity(row, place, place + used)
        pause = bool(figures) and text[figures[-1].end : first.start].strip() != ""
        figures.append(Figure(digits, first.start, last.end, gap, pause, unsure, quantity))
        gap = 0
        touching = True
        place += used
    return Reading(tuple(figures), gap)


def _figure(row: list[Token], place: int, inside: bool) -> tuple[str, int, bool]:
    """Digits that start at a token, how many tokens they take, and whether that is unsure; ("", 0, False) if none."""
    word = row[place].text
    after = _at(row, place + 1)
    if word[0].isdecimal():
        return _plain(word), *_scaled(row, place + 1)
    if word in REPEATS:
        digit, used, _ = _figure(row, place + 1, True) if after else ("", 0, False)
        return (digit * REPEATS[word], 1 + used, False) if len(digit) == 1 else ("", 0, False)
    if word in MANY:
        return MANY[word], 1, True
    if word in TENS:
        skip = 2 if after == "-" else 1
        ones = ONES.get(_at(row, place + skip), "0")
        if ones != "0":
            return TENS[word] + ones, skip + 1, False
        return TENS[word] + "0", 1, False
    if word in ONES or word in TEENS:
        digits = ONES.get(word) or TEENS[word]
        many = MANY.get(after, "")
        if many and 1 < int(digits) < 13:
            return many * int(digits), 2, False
        grown, used, unsure = digits, *_scaled(row, place + 1)
        return grown + "0" * _zeros(row, place + 1), used, unsure
    if word in SOUND_ALIKE and _is_digit_here(row, place, inside):
        beside = _is_figure(after) or (bool(place) and _is_figure(row[place - 1].text))
        return SOUND_ALIKE[word], 1, word not in ZERO_LETTERS or not beside
    return "", 0, False


def _plain(word: str) -> str:
    return "".join(str(unicodedata.decimal(char)) for char in word if char != ",")


def _scaled(row: list[Token], place: int) -> tuple[int, bool]:
    """How many tokens a figure takes before `place`, with the hundred or thousand that may stand there."""
    return (2, True) if _at(row, place) in SCALES else (1, False)


def _zeros(row: list[Token], place: int) -> int:
    return SCALES.get(_at(row, place), 0)


def _is_digit_here(row: list[Token], place: int, inside: bool) -> bool:
    """Whether a word that sounds like a digit stands where only a digit can."""
    after = _at(row, place + 1)
    if row[place].text in ZERO_LETTERS:
        beyond = _beyond(row, place)
        new_sentence = _at(row, place - 1) == "." and after not in ("", ".")
        return (inside and not new_sentence) or _is_figure(beyond) or after in ZERO_LETTERS
    follows = _is_figure(after)
    return inside and (follows or not after or after in SOUND_ALIKE or after in ",.")


def _beyond(row: list[Token], place: int) -> str:
    """The next word after a place that is neither a filler nor a comma or full stop."""
    place += 1
    while place < len(row) and (row[place].text in ",." or row[place].text in FILLERS):
        place += 1
    return _at(row, place)


def _is_figure(word: str) -> bool:
    return word in ONES or word in TEENS or word in TENS or word in REPEATS or word[:1].isdecimal()


def _is_one_digit(word: str) -> bool:
    return word in ONES or (len(word) == 1 and word.isdecimal())


def _is_quantity(row: list[Token], start: int, end: int) -> bool:
    """Whether a figure counts dollars, hours or the like, or is a time of day."""
    before, after = _at(row, start - 1), _at(row, end)
    if after in UNITS or after == "%":
        # "1 8 times": digits one by one, and a word misheard.
        return not (_is_one_digit(before) and _is_one_digit(_at(row, start)))
    cents = before == "." and len(_at(row, start)) == 2 and _at(row, start - 3) in (*CURRENCY,)
    if cents:
        return True
    if before and before in CURRENCY:
        return not _at(row, end)[:1].isdecimal()
    hours = after == ":" and len(_at(row, end + 1)) == 2 and _at(row, end + 2) != ":"
    minutes = before == ":" and len(_at(row, start)) == 2 and after != ":" and _at(row, start - 3) != ":"
    return (hours and len(_at(row, start)) <= 2) or (minutes and len(_at(row, start - 2)) <= 2)


def _at(row: list[Token], place: int) -> str:
    return row[place].text if 0 <= place < len(row) else ""
