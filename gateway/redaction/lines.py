"""Utterances as the rules see them: read once, with their words' times, and joined into rows of figures. Pure.

A row is what one side says or types as one number: its figures may be parted by fillers, by up to a few
other words, by a pause, and by whatever the other side says meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from gateway.redaction.figures import Figure, read, tokens
from gateway.redaction.phrases import dates, mentions
from gateway.redaction.word_times import WordTimes
from gateway.transcript import Utterance

GAP_SECONDS = 12.0
"""Between two figures of one number: the other side answers, asks back, and waits."""
GAP_WORDS = 3
"""Words, other than fillers, between two figures of one number."""

SPELLED_FIGURES = 3
"""The fewest figures of one or two digits on end that are a number being spelled."""

_OTHER = frozenset(("cvv", "ssn", "phone", "birth_date", "email"))


class Said(NamedTuple):
    """A mention at its time."""

    kind: str
    at: float
    number: int
    place: int
    """Where in the utterance's text it ends."""


class Line:
    """One utterance, read."""

    def __init__(self, utterance: Utterance) -> None:
        self.utterance = utterance
        self.number = utterance.number
        self.text = utterance.text
        self.keypad = utterance.speaker == "caller" and utterance.text.startswith("[keypad ")
        self.channel = "keypad" if self.keypad else utterance.speaker
        self.reading = read(utterance.text)
        self.times = WordTimes(utterance)
        self.mentions = [
            Said(one.kind, self.times.begins(one.start), self.number, one.end) for one in mentions(utterance.text)
        ]

    def turns_to_other(self, before: Placed, figure: Figure) -> bool:
        """Whether other data than a card is spoken of between a figure and the one before."""
        since = before.figure.end if before.line is self else 0
        return any(since < said.place <= figure.start and said.kind in _OTHER for said in self.mentions)

    @cached_property
    def dates(self) -> list[tuple[int, int]]:
        """Where days of the year are."""
        return list(dates(self.text))

    @cached_property
    def plain(self) -> tuple[str, list[tuple[int, int]]]:
        """The text with its figures as digits, single letters and digits together ("A B one two" is "AB12"),
        and for each character of it the part of the text that it stands for."""
        return plain(self.text, self.reading.figures)


@dataclass(frozen=True, slots=True)
class Finding:
    """A part of an utterance's text that must not be seen, and what stands there instead."""

    line: Line
    start: int
    end: int
    label: str

    @property
    def number(self) -> int:
        return self.line.number


def plain(text: str, figures: Sequence[Figure]) -> tuple[str, list[tuple[int, int]]]:
    """See `Line.plain`."""
    parts = [(figure.digits, figure.start, figure.end) for figure in figures]
    covered = {place for figure in figures for place in range(figure.start, figure.end)}
    parts += [(one.text, one.start, one.end) for one in tokens(text) if one.is_word and one.start not in covered]
    parts.sort(key=lambda part: part[1])
    out: list[str] = []
    places: list[tuple[int, int]] = []
    spelled = False
    for word, start, end in parts:
        spells = len(word) == 1 or word[0].isdecimal()
        if out and not (spelled and spells):
            out.append(" ")
            places.append((start, start))
        out.append(word)
        places += [(start, end)] * len(word)
        spelled = spells
    return "".join(out), places


@dataclass(frozen=True, slots=True)
class Placed:
    """A figure in its utterance."""

    line: Line
    figure: Figure
    gap: int
    """Words other than fillers that its side said since its figure before."""
    start: float
    end: float
    """Seconds of the call."""


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one side that may be one number."""

    figures: tuple[Placed, ...]
    tail: int
    """Words other than fillers that its side has said since."""

    @property
    def counted(self) -> str:
        """The digits, without those of figures that count something: dollars, hours."""
        return "".join(placed.figure.digits for placed in self.figures if not placed.figure.quantity)

    @property
    def unsure(self) -> bool:
        return any(placed.figure.unsure and not placed.figure.quantity for placed in self.figures)

    @property
    def spelled(self) -> bool:
        """Whether a caller says it figure by figure, three or more on end, as people do with long numbers."""
        plain = [one.figure for one in self.figures if not one.figure.unsure and not one.figure.quantity]
        return (
            self.figures[0].line.channel == "caller"
            and sum(len(figure.digits) <= 2 for figure in plain) >= SPELLED_FIGURES
        )

    @property
    def start(self) -> float:
        return self.figures[0].start

    @property
    def end(self) -> float:
        return self.figures[-1].end

    def pieces(self) -> list[tuple[Line, int, int]]:
        """The row's part of each utterance, from its first figure's place to the end of its last."""
        parts: dict[int, tuple[Line, int, int]] = {}
        for placed in self.figures:
            line, figure = placed.line, placed.figure
            first = parts[line.number][1] if line.number in parts else figure.start
            parts[line.number] = (line, first, figure.end)
        return list(parts.values())

    def covers(self, other: Row) -> bool:
        return len(self.figures) == len(other.figures)

    def around(self, part: Row) -> list[Row]:
        """The row in three: what is before a part of it, the part, and what is after; less where there is nothing."""
        first = self.figures.index(part.figures[0])
        after = first + len(part.figures)
        three = (self.figures[:first], self.figures[first:after], self.figures[after:])
        return [Row(figures, self.tail) for figures in three if figures]

    def strict(self) -> list[Row]:
        """The row cut where anything but fillers was said, and without what counts something."""
        rows: list[list[Placed]] = []
        broken = True
        for placed in self.figures:
            if placed.figure.quantity:
                broken = True
                continue
            if broken or placed.gap:
                rows.append([])
            broken = False
            rows[-1].append(placed)
        return [Row(tuple(row), self.tail) for row in rows]


def rows(lines: Sequence[Line]) -> list[Row]:
    """All rows of figures, by the time they begin. `lines` are ordered by time."""
    found: list[Row] = []
    for channel in ("caller", "agent", "keypad"):
        found += _rows_of([line for line in lines if line.channel == channel])
    return sorted(found, key=lambda row: row.start)


def _rows_of(lines: Iterable[Line]) -> list[Row]:
    found: list[Row] = []
    row: list[Placed] = []
    words = 0
    for line in lines:
        for figure in line.reading.figures:
            words += figure.gap
            placed = Placed(line, figure, words, line.times.begins(figure.start), line.times.ends(figure.end))
            apart = words > GAP_WORDS or (row and placed.start - row[-1].end > GAP_SECONDS)
            if row and (apart or line.turns_to_other(row[-1], figure)):
                found.append(Row(tuple(row), words))
                row = []
            if row or figure.digits != "0" or not figure.unsure:
                row.append(placed)
            words = 0
        words += line.reading.tail
    return [*found, Row(tuple(row), words)] if row else found
