"""What is to be redacted in the utterances at hand, and what cannot be decided yet. Pure.

Owns the judgement: which row of figures is what, by arithmetic where there is a check, else by what was
said around it. Where it errs, it errs on the side of redacting once the talk is of a card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.redaction import phrases
from gateway.redaction.beside_card import AFTER_SECONDS, Spoken, digit_like, is_pronoun, is_read_back, near, sound_of
from gateway.redaction.lines import GAP_SECONDS, GAP_WORDS, Finding, Line, Row, Said, rows
from gateway.redaction.numbers import CARD_DIGITS, holds_card, is_phone, is_ssn, looks_like_card, luhn
from gateway.redaction.rules import LABELS, Rules, compiled

MENTION_SECONDS = 25.0
"""How long what was spoken of tells what the next figures are."""
MENTION_CHARACTERS = 48
"""Characters of an utterance after figures in which it may still say what they were."""
LONG_SECONDS = 20.0
"""A row that takes longer than this counts as a card's number, so that nothing is held back for ever."""
AFTER_CARD_DIGITS = 2
"""The same, soon after figures of a card: a part that is read back, or the rest of it."""
SAME_BREATH = 2.5
"""Seconds from "the last four digits" to the "card number" that they are of."""
LONG_RUN_DIGITS = 7
"""The fewest digits on end that are a card's though nobody spoke of one."""
DATE_DIGITS = 8
ADD_UP_SECONDS = 17.0
"""Between two short rows that a caller spells: the agent answers, and recognition loses a group."""
SPELLED_DIGITS = 5
"""The same, where they are said one by one."""
PARTIAL_DIGITS = 3
"""The fewest digits that are a part of a card's number, where one is spoken of."""


@dataclass(frozen=True, slots=True)
class Open:
    """A row that may still turn out to be something, until `until` (call seconds)."""

    row: Row
    until: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known so far."""

    findings: tuple[Finding, ...]
    open: tuple[Open, ...]
    card_sound: tuple[tuple[float, float], ...] = ()
    """From, to (call seconds): the caller says a card's number, whatever words came of it."""


class _Talk:
    """What was spoken of, and when figures of a card were said."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._said = [said for line in lines for said in line.mentions]
        self.cards: list[Spoken] = []

    def card(self, row: Row) -> None:
        """Note that a row is a card's."""
        self.cards.append(Spoken(row.figures[0].line.channel, row.start, row.end, row.counted))

    @property
    def card_until(self) -> float:
        """When the card's figures are no longer to be expected."""
        return max((one.end for one in self.cards), default=-AFTER_SECONDS - 1.0) + AFTER_SECONDS

    def about(self, row: Row) -> list[Said]:
        """What a row may be, by the words around it: the nearest first."""
        first, last = row.figures[0], row.figures[-1]
        ahead, after = [], []
        for said in self._said:
            if said.number == first.line.number and said.place <= first.figure.start:
                ahead.append(said)
            elif said.number == last.line.number and said.place > last.figure.end:
                if said.place - last.figure.end <= MENTION_CHARACTERS:
                    after.append(said)
            elif row.start - MENTION_SECONDS <= said.at <= row.end and said.number != last.line.number:
                ahead.append(said)
        ahead = [said for said in ahead if row.start - said.at <= MENTION_SECONDS]
        ahead.sort(key=lambda said: said.at, reverse=True)
        return ahead + after


def judge(lines: Sequence[Line], rules: Rules) -> Judgement:
    """Apply the rules to utterances ordered by time, of both sides."""
    findings = [*_addresses(lines, rules), *_dates(lines, rules), *_customs(lines, rules)]
    if not rules.kinds - {"email"}:
        return Judgement(tuple(findings), ())
    talk = _Talk(lines)
    judged = [(row, _judge_row(row, talk, rules)) for row in rows(lines)]
    if rules.card:
        _add_up(judged, talk, rules)
        judged = [(row, found + _beside_card(row, found, talk, rules)) for row, found in judged]
    findings += [one for _, found in judged for one in found]
    if rules.card:
        findings += digit_like(lines, talk.cards, findings)
    undecided = [Open(row, row.end + GAP_SECONDS) for row, found in judged if not found or not _covers(found, row)]
    return Judgement(tuple(findings), tuple(undecided), tuple(_card_sound(lines, talk)) if rules.card else ())


def _card_sound(lines: Sequence[Line], talk: _Talk) -> list[tuple[float, float]]:
    asked = [one.at for line in lines if line.channel == "agent" for one in line.mentions if one.kind == "card"]
    return sound_of(talk.cards, asked)


def _add_up(judged: Sequence[tuple[Row, list[Finding]]], talk: _Talk, rules: Rules) -> None:
    """Note short rows that a caller spelled soon after each other: a long number, of which the rest was misheard."""
    before: Row | None = None
    for row, found in judged:
        known = any(one.label.startswith(LABELS["card"]) for one in found)
        if row.figures[0].line.channel != "caller" or not (known or _is_spelled(row, talk, rules)):
            continue
        together = before is not None and row.start - before.end <= ADD_UP_SECONDS
        if before is not None and together:
            talk.card(before)
        if not known and (together or len(row.counted) >= SPELLED_DIGITS):
            talk.card(row)
        before = row


def _is_spelled(row: Row, talk: _Talk, rules: Rules) -> bool:
    return row.spelled and _kind(row, talk, rules) in ("", "card")


def _beside_card(row: Row, found: Sequence[Finding], talk: _Talk, rules: Rules) -> list[Finding]:
    """Every figure near those of a card is the card's too, unless it is known to be something else."""
    more: list[Finding] = []
    masked = {(one.number, one.start) for one in found}
    for part in row.strict():
        line, start, _ = part.pieces()[0]
        if (line.number, start) in masked or not near(talk.cards, line.channel, part.start, part.end):
            continue
        # Whoever says all of a number does not say its last four digits beside it, whatever the words seem to say.
        of_card = _kind(part, talk, rules) in ("", "card", "last_four") and not _is_date(part)
        if of_card or is_read_back(talk.cards, line.channel, part.start, part.counted):
            more += [one for one in _as(part, "card", rules) if not is_pronoun(one.line.text, one.start, one.end)]
    return more


def _is_date(row: Row) -> bool:
    """Whether it is a day of the year, written or said as one."""
    line, start, end = row.pieces()[0]
    return len(row.counted) <= DATE_DIGITS and any(first <= start and end <= last for first, last in line.dates)


def may_go_on(row: Row) -> bool:
    """Whether figures can join it: its side has not said too many other words since, or it is being spelled."""
    return row.tail <= GAP_WORDS or row.spelled


def _covers(found: Sequence[Finding], row: Row) -> bool:
    pieces = {(line.number, start, end) for line, start, end in row.pieces()}
    return pieces <= {(one.number, one.start, one.end) for one in found}


def _judge_row(row: Row, talk: _Talk, rules: Rules) -> list[Finding]:
    if rules.card:
        for part in row.strict():
            if luhn(part.counted) and CARD_DIGITS[0] <= len(part.counted) <= CARD_DIGITS[1] and not part.covers(row):
                # A whole number by itself: what was said before and after it is something else.
                return [found for one in row.around(part) for found in _judge_row(one, talk, rules)]
        if _is_card(row, talk):
            talk.card(row)
            return _as(row, "card", rules)
    found: list[Finding] = []
    for part in row.strict():
        kind = _kind(part, talk, rules)
        if kind == "card" and rules.card:
            talk.card(part)
        if kind in rules.kinds or (kind == "card" and rules.card):
            found += _as(part, kind, rules)
    return found


def _is_card(row: Row, talk: _Talk) -> bool:
    """By arithmetic, by length, or because it goes on for very long."""
    digits = row.counted
    abroad = len(digits) < CARD_DIGITS[0] and _plus(row)
    if (
        holds_card(digits)
        or (looks_like_card(digits) and not abroad and not is_phone(digits))
        or (row.unsure and len(digits) >= CARD_DIGITS[0])
    ):
        return True
    if row.end - row.start > LONG_SECONDS and len(digits) >= PARTIAL_DIGITS:
        return True
    return len(digits) >= CARD_DIGITS[0] - 1 and _card_is_talked_of(row, talk)


def _card_is_talked_of(row: Row, talk: _Talk) -> bool:
    return row.start <= talk.card_until or any(said.kind == "card" for said in talk.about(row))


def _kind(row: Row, talk: _Talk, rules: Rules) -> str:
    """What a row without other words in it is, whether the rules name it or not; empty: nothing known."""
    digits = row.counted
    about = talk.about(row)
    if len(digits) <= 4 and _last_four(about):
        return "last_four"
    for said in about:
        if _fits(said.kind, len(digits)):
            return said.kind
    if is_ssn(digits) and _grouped(row) == (3, 2, 4):
        return "ssn"
    if "phone" in rules.kinds and (is_phone(digits) or (len(digits) >= 8 and _plus(row))):
        return "phone"
    if row.start <= talk.card_until and len(digits) >= AFTER_CARD_DIGITS:
        return "card"
    return "card" if _is_long_run(row) else ""


def _is_long_run(row: Row) -> bool:
    """Whether a caller says so many figures on end that it may be a card's, though nothing was said of one.

    Of what has as many, numbers of telephones and dates are known by how they are written; order and
    account numbers are not, and go with the cards.
    """
    sure = sum(len(placed.figure.digits) for placed in row.figures if not placed.figure.unsure)
    if sure < LONG_RUN_DIGITS or row.figures[0].line.channel == "agent" or _plus(row):
        return False
    groups = _grouped(row)
    as_phone = groups in ((3, 4), (3, 3, 4), (1, 3, 3, 4), (10,), (11,)) and (sure == 7 or is_phone(row.counted))
    as_date = len(groups) == 3 and sorted(groups)[:2] <= [2, 2] and sorted(groups)[2] == 4
    return not as_phone and not as_date


def _last_four(about: Sequence[Said]) -> bool:
    """Whether the talk is of the last four digits of a card, which are on every receipt."""
    last_four = max((said.at for said in about if said.kind == "last_four"), default=None)
    if last_four is None or any(said.kind == "ssn" for said in about):
        return False
    return last_four >= max((said.at for said in about if said.kind == "card"), default=0.0) - SAME_BREATH


_LENGTHS = {
    "card": (PARTIAL_DIGITS, 40),
    "cvv": (2, 6),
    "ssn": (4, 12),
    "phone": (7, 15),
    "birth_date": (4, 8),
}
"""Digits, with those that recognition loses or adds."""


def _fits(kind: str, digits: int) -> bool:
    least, most = _LENGTHS.get(kind, (1, 0))
    return least <= digits <= most


def _grouped(row: Row) -> tuple[int, ...]:
    """How many digits stand together, where figures are written in groups."""
    return tuple(len(placed.figure.digits) for placed in row.figures)


def _plus(row: Row) -> bool:
    first = row.figures[0]
    before = first.line.text[: first.figure.start].rstrip().lower()
    return before.endswith(("+", "plus"))


def _as(row: Row, kind: str, rules: Rules) -> list[Finding]:
    label = LABELS["card" if kind == "card" else kind]
    if kind == "card" and rules.keeps_last_four and luhn(row.counted) and len(row.counted) in range(*CARD_DIGITS):
        label += f" ending in {row.counted[-4:]}"
    return [Finding(line, start, end, label) for line, start, end in row.pieces()]


def _addresses(lines: Sequence[Line], rules: Rules) -> Iterator[Finding]:
    if "email" not in rules.kinds:
        return
    label = LABELS["email"]
    asked_at = [said.at for line in lines for said in line.mentions if said.kind == "email"]
    before: dict[str, Line] = {}
    for line in lines:
        asked = any(line.utterance.start - MENTION_SECONDS <= at <= line.utterance.end for at in asked_at)
        for start, end in phrases.domains(line.text):
            begin = phrases.local_part(line.text, start, asked)
            yield Finding(line, begin, end, label)
            earlier = before.get(line.channel)
            if begin == start and earlier and line.utterance.start - earlier.utterance.end <= GAP_SECONDS:
                text = earlier.text.rstrip(" .,!?")
                if (place := phrases.local_part(text, len(text), asked)) < len(text):
                    yield Finding(earlier, place, len(text), label)
        if asked:
            for start, end in phrases.unfinished_addresses(line.text):
                yield Finding(line, start, end, label)
        before[line.channel] = line


def _dates(lines: Sequence[Line], rules: Rules) -> Iterator[Finding]:
    if "birth_date" not in rules.kinds:
        return
    said = [one for line in lines for one in line.mentions if one.kind == "birth_date"]
    if not said:
        return
    for line in lines:
        for start, end in line.dates:
            at = line.times.begins(start)
            if any(one.number == line.number or at - MENTION_SECONDS <= one.at <= at for one in said):
                yield Finding(line, start, end, LABELS["birth_date"])


def _customs(lines: Sequence[Line], rules: Rules) -> Iterator[Finding]:
    for own in rules.custom:
        expression = compiled(own.pattern)
        for line in lines:
            for text, places in ((line.text, None), line.plain):
                for match in expression.finditer(text):
                    start, end = match.span()
                    if places is not None:
                        start, end = places[start][0], places[end - 1][1]
                    if start < end:
                        yield Finding(line, start, end, own.label)
