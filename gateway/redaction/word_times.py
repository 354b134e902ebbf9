"""Places in an utterance's text -> seconds of the call. Pure.

Where the engine said when each word began, that is used; else words are spread over the utterance by how
long they take to say, and what is muted gets wider, because pauses are not known.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate

from gateway.transcript import Utterance

BESIDE = 0.6
"""Seconds muted on both sides of what is known to the word: digits at the edge are misheard as other words."""
BESIDE_ESTIMATE = 0.5
BESIDE_SHARE = 0.12
"""Where times are estimated: seconds, and the share of the utterance, muted on both sides."""
EDGE = 1.0
"""What is left of an utterance beside what is muted, if it is shorter than this, is muted too."""
BEYOND = 0.3
"""Seconds muted beyond an utterance that begins or ends with what is muted: recognition cuts edges."""

_LETTER, _DIGIT, _WORD, _SENTENCE = 0.065, 0.33, 0.06, 0.3


class WordTimes:
    """One utterance's words in time."""

    def __init__(self, utterance: Utterance) -> None:
        self._start, self._end = utterance.start, max(utterance.end, utterance.start)
        words = [(match.start(), match.end()) for match in re.finditer(r"\S+", utterance.text)]
        self._places = [start for start, _ in words]
        self._known = len(utterance.onsets) == len(words) and bool(words)
        given = list(accumulate(utterance.onsets, max))
        self._onsets = given if self._known else self._estimate(utterance.text, words)
        self._last = words[-1][1] if words else 0

    def _estimate(self, text: str, words: list[tuple[int, int]]) -> list[float]:
        weights = [_weight(text[start:end]) for start, end in words]
        total = sum(weights) or 1.0
        onsets, at = [], self._start
        for weight in weights:
            onsets.append(at)
            at += weight / total * (self._end - self._start)
        return onsets

    def begins(self, place: int) -> float:
        """When the word at a place in the text begins."""
        index = bisect_right(self._places, place) - 1
        return self._onsets[index] if index >= 0 else self._start

    def ends(self, place: int) -> float:
        """When the word that ends before a place in the text is over, that is when the next one begins."""
        index = bisect_right(self._places, max(0, place - 1))
        return self._onsets[index] if index < len(self._onsets) else self._end

    def first_after(self, moment: float) -> int | None:
        """The place of the first word that is not over by `moment`; None if all are."""
        for index, place in enumerate(self._places):
            end = self._onsets[index + 1] if index + 1 < len(self._onsets) else self._end
            if end > moment:
                return place
        return None

    def muted(self, start: int, end: int) -> tuple[float, float]:
        """The seconds to mute so that the text from `start` up to `end` cannot be heard."""
        beside = BESIDE if self._known else BESIDE_ESTIMATE + BESIDE_SHARE * (self._end - self._start)
        first, last = self.begins(start) - beside, self.ends(end) + beside
        if start <= (self._places or [0])[0] or first < self._start + EDGE:
            first = self._start - BEYOND
        if end >= self._last - 1 or last > self._end - EDGE:
            last = self._end + BEYOND
        return max(0.0, max(first, self._start - BEYOND)), min(last, self._end + BEYOND)


def _weight(word: str) -> float:
    digits = sum(char.isdigit() for char in word)
    letters = sum(char.isalpha() for char in word)
    pause = _SENTENCE if word.endswith((".", "?", "!")) else _SENTENCE / 2 if word.endswith(",") else 0.0
    return _WORD + _LETTER * letters + _DIGIT * digits + pause
