"""What stands near figures of a card and may be more of it, though recognition wrote other words. Pure.

Over-redaction beats leakage: where a card's number was said, words that digits are misheard as go with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.redaction.figures import Token, tokens
from gateway.redaction.lines import Finding, Line
from gateway.redaction.rules import LABELS
from gateway.redaction.vocabulary import AFTER_PRONOUN, BEFORE_PRONOUN, FILLERS, MISHEARD

BEFORE_SECONDS = 12.0
AFTER_SECONDS = 15.0
"""So long before figures of a card, on the same side, and after them, on both, other figures are the card's."""


ASKED_SECONDS = 25.0
"""From the agent's question for a card to the first figures of the answer that recognition wrote as figures."""
READ_BACK_DIGITS = 3
"""The fewest digits that one side repeats of the other's card."""


class Spoken(NamedTuple):
    """Figures of a card: on which channel, from when to when (call seconds), and their digits."""

    channel: str
    start: float
    end: float
    digits: str


def near(cards: Sequence[Spoken], channel: str, start: float, end: float) -> bool:
    """Whether what was said from `start` to `end` is near figures of a card."""
    return any(
        start <= card.end + AFTER_SECONDS and end >= card.start - (BEFORE_SECONDS if card.channel == channel else 0.0)
        for card in cards
    )


def is_read_back(cards: Sequence[Spoken], channel: str, start: float, digits: str) -> bool:
    """Whether these are digits of a card that the other side has said, whatever the talk seems to be of."""
    return len(digits) >= READ_BACK_DIGITS and any(
        card.channel != channel and card.start <= start <= card.end + AFTER_SECONDS and digits in card.digits
        for card in cards
    )


def is_pronoun(text: str, start: int, end: int) -> bool:
    """Whether a figure is the "one" of "this one" or "one moment"."""
    if text[start:end].lower() != "one":
        return False
    before, after = tokens(text[:start]), tokens(text[end:])
    return bool((before and before[-1].text in BEFORE_PRONOUN) or (after and after[0].text in AFTER_PRONOUN))


def digit_like(lines: Sequence[Line], cards: Sequence[Spoken], found: Sequence[Finding]) -> Iterator[Finding]:
    """Words that digits are misheard as, beside figures of a card; and short utterances that are little else."""
    label = LABELS["card"]
    for line in lines:
        spoken = line.utterance
        if line.channel == "keypad" or not near(cards, line.channel, spoken.start, spoken.end):
            continue
        masked = [(one.start, one.end) for one in found if one.number == line.number and one.label.startswith(label)]
        row = tokens(line.text)
        words = [one for one in row if one.is_word and one.text not in FILLERS and not _is_masked(one, masked)]
        like = [one for one in words if one.text in MISHEARD]
        if line.channel == "caller" and len(like) >= 2 and 2 * len(like) >= len(words):
            yield Finding(line, row[0].start, row[-1].end, label)
            continue
        yield from (Finding(line, start, end, label) for start, end in _grown(row, masked))


def _is_masked(token: Token, masked: Sequence[tuple[int, int]]) -> bool:
    return any(start <= token.start < end for start, end in masked)


def sound_of(cards: Sequence[Spoken], asked: Sequence[float]) -> list[tuple[float, float]]:
    """From, to (call seconds): the caller says a card's number, with all that is said between two parts of it.

    What is between them may be figures too, of which recognition made other words; so may what the caller says
    first after the agent asked, at one of the times `asked`.
    """
    spans: list[tuple[float, float]] = []
    for card in sorted((one for one in cards if one.channel == "caller"), key=lambda one: one.start):
        if spans and card.start <= spans[-1][1] + AFTER_SECONDS:
            spans[-1] = (spans[-1][0], max(spans[-1][1], card.end))
        else:
            first = [at for at in asked if card.start - ASKED_SECONDS <= at <= card.start]
            spans.append((min(first, default=card.start), card.end))
    return spans


def _grown(row: Sequence[Token], masked: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Masked parts with the misheard words that touch them."""
    for start, end in masked:
        first, last = start, end
        for token in reversed([one for one in row if one.end <= start]):
            if token.text in MISHEARD:
                first = token.start
            elif token.text not in ",.-":
                break
        for token in [one for one in row if one.start >= end]:
            if token.text in MISHEARD:
                last = token.end
            elif token.text not in ",.-":
                break
        if (first, last) != (start, end):
            yield first, last
