"""Where a caller's utterances begin and end, for writing down what was said. Pure.

Owns the decision, from one yes or no every 32 ms. Unlike `model.rehearsal.turns` it decides for nobody who waits: it
may take its time. Standard library only.
"""

from __future__ import annotations

from collections import deque

ONSET, AMONG = 3, 8
"""So many windows of speech among so many open an utterance."""
END = 20
"""Windows of silence that end one: 640 ms."""
LEAST = 4
"""One with fewer windows of speech is a click or a cough."""
LEAD = 8
"""Windows before the first one of speech that belong to it."""
PIECE = 250
"""After so many windows, 8 s, a shorter silence ends one."""
BREATH = 6
LONGEST = 780
"""25 s: more is not recognised at once."""


class Utterances:
    """One caller's. Windows count from the first that is told."""

    def __init__(self) -> None:
        self._window = 0
        self._recent: deque[bool] = deque(maxlen=AMONG)
        self._start: int | None = None
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
            self._start = max(0, first - LEAD)
            self._speech = sum(self._recent) - speech
        if speech:
            self._speech += 1
            self._last = window
        silence, length = window - self._last, window + 1 - self._start
        if silence < (END if length < PIECE else BREATH) and length < LONGEST:
            return None
        return self.end()

    def end(self) -> tuple[int, int] | None:
        """The caller is not heard any more: the utterance under way, if it is one."""
        start, self._start = self._start, None
        self._recent.clear()
        if start is None or self._speech < LEAST:
            return None
        return start, min(self._window, self._last + 1 + LEAD)
