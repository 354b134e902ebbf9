"""What is said around private data, and the data that is made of words: mentions, e-mail addresses, dates. Pure.

Every expression runs in RE2, in time linear in the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import re2

from gateway.redaction.figures import Token, tokens
from gateway.redaction.vocabulary import (
    BEFORE_ADDRESS,
    CONNECTORS,
    DATE_WORDS,
    DOMAIN,
    LOOSE_IN_DATES,
    MENTIONS,
    MONTHS,
    UNFINISHED_ADDRESS,
)

_SPELLED_FAR = 16
"""Tokens of an address before its at sign at most."""


@dataclass(frozen=True, slots=True)
class Mention:
    """Words that say which kind of data is spoken of; places in the text."""

    kind: str
    start: int
    end: int


@cache
def _expression(pattern: str) -> Any:
    options = re2.Options()
    options.case_sensitive = False
    return re2.compile(pattern, options)


def mentions(text: str) -> list[Mention]:
    """All mentions, in order of their places."""
    found = [
        Mention(kind, *match.span())
        for kind, pattern in MENTIONS.items()
        for match in _expression(pattern).finditer(text)
    ]
    return sorted(found, key=lambda one: one.start)


def dates(text: str) -> Iterator[tuple[int, int]]:
    """Days of the year with or without it: "March 5th, 1980", "the fifth of March", "3/5/80"."""
    run: list[Token] = []
    for token in [*tokens(text), Token("\0", len(text), len(text))]:
        if token.text[0].isdecimal() or token.text in MONTHS | DATE_WORDS | LOOSE_IN_DATES:
            run.append(token)
            continue
        kept = [one for one in run if one.text not in LOOSE_IN_DATES]
        if kept and _is_date(run, kept):
            yield kept[0].start, kept[-1].end
        run = []


def _is_date(run: list[Token], kept: list[Token]) -> bool:
    months = sum(token.text in MONTHS for token in kept)
    signs = sum(token.text in "/-" for token in run)
    figures = sum(token.text[0].isdecimal() for token in kept)
    return bool(0 < months < len(kept)) or (signs >= 2 and figures >= 3)


def domains(text: str) -> Iterator[tuple[int, int]]:
    """The part of e-mail addresses from the at sign on, written or spoken."""
    for match in _expression(DOMAIN).finditer(text):
        yield match.span()


def unfinished_addresses(text: str) -> Iterator[tuple[int, int]]:
    """What looks like the beginning of an address: "john dot smith". Only of use where an address is asked for."""
    for match in _expression(UNFINISHED_ADDRESS).finditer(text):
        yield match.span()


def local_part(text: str, end: int, asked: bool) -> int:
    """The place at which an address begins whose at sign is at `end`; `end` itself if nothing fits.

    Letters, figures and what joins them belong to it, and one word; where an address was `asked` for, all
    words back to "is" or "it's".
    """
    row = tokens(text[:end])[-_SPELLED_FAR:]
    start = end
    words = 0
    joined = True
    for token in reversed(row):
        if token.text in CONNECTORS:
            if token.text == "." and not asked and text[token.end : token.end + 1].isspace():
                break
            joined = True
            continue
        if token.text in BEFORE_ADDRESS or not (token.is_word or token.text[0].isdecimal()):
            break
        letter = len(token.text) == 1 or token.text[0].isdecimal()
        if not (letter or joined or asked):
            break
        words += not letter
        joined = letter and words == 0
        start = token.start
    return start
