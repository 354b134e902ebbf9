"""Where a caller's utterances begin and end, for writing down what was said. Pure.

Owns the decision, from one yes or no every 32 ms. Unlike `model.rehearsal.turns` it decides for nobody who waits: it
may take its time. Standard library only.
"""

from __future__ import annotations

import math
from collections import deque

ONSET, AMONG = 3, 8
"""So many windows of speech among so many open an utterance."""
END = 20
"""Windows of silence that end one: 640 ms."""
LEAST = 4
"""One with fewer windows of speech is a click or a cough."""
LEAD = 8
"""Windows before the first one of speech that belong to it."""
PIECE = 188
"""After so many windows, 6 s, a breath ends one, and the shorter a breath the longer it has become."""
BREATH = 6
LONGEST = 250
"""Where there was none at all, so many windows end it, 8 s. When a worker is lost, another gets 10 s of its caller's
sound, and in them hears all of an utterance that was not written down. Whisper loses words of longer ones, too."""


class Utterances:
    """One caller's. Windows count from the first that is told."""

    def __init__(self) -> None:
        self._window = 0
        self._recent: deque[bool] = deque(maxlen=AMONG)
        self._start: int | None = None
        self._ended = 0
        """Where the one before ended."""
        self._speech = 0
        self._last = 0

    @property
    def under_way(self) -> int:
        """Windows since the beginning of the utterance that has not ended; 0 between utterances."""
        return self._window - self._start if self._start is not None else 0

    def hear(self, speech: bool) -> tuple[int, int] | None:
        """The next window. Returns the utterance that it ended: from one window up to, not with, another."""
        window = self._window
        self._window += 1
        self._recent.append(speech)
        if self._start is None:
            if sum(self._recent) < ONSET:
                return None
            first = window - len(self._recent) + 1 + list(self._recent).index(True)
            self._start = max(self._ended, first - LEAD)
            self._speech = sum(self._recent) - speech
        if speech:
            self._speech += 1
            self._last = window
        silence, length = window - self._last, window + 1 - self._start
        return self.end() if silence >= _enough(length) else None

    def end(self) -> tuple[int, int] | None:
        """The caller is not heard any more: the utterance under way, if it is one."""
        start, self._start = self._start, None
        self._recent.clear()
        if start is None or self._speech < LEAST:
            return None
        self._ended = min(self._window, self._last + 1 + LEAD)
        return start, self._ended


def _enough(length: int) -> int:
    """Windows of silence that end an utterance of so many."""
    return END if length < PIECE else math.ceil(BREATH * (LONGEST - length) / (LONGEST - PIECE))
