"""Whose turn it is on an engine: the steps of those who talk, or other work beside them, which is done in parts.

Owns how many steps come in a row, and how long the last parts took. Pure: time comes in as seconds. Knows no calls.

Launching a part takes a GPU's host some ten milliseconds, for which a step that is due meanwhile waits. So one is begun
after a step rather than shortly before the next; where steps follow each other without a pause, after some of them.
"""

from __future__ import annotations

from collections import deque

from model.pace import FRAME, LATEST

STARVED = 8
"""After so many steps in a row, other work has a turn; the sooner, the more calls wait to speak."""
_PARTS = 4
"""Of which the longest tells how long the next may take."""
_LONG_PART = FRAME / 4
"""Seconds of a part that fits between no two steps where there are many calls: for it there is no better moment."""


class Interleaving:
    """Told of every step and of every part."""

    def __init__(self) -> None:
        self._steps = 0
        self._took: deque[float] = deque(maxlen=_PARTS)

    def stepped(self) -> None:
        self._steps += 1

    def parted(self, seconds: float | None) -> None:
        """Other work had its turn, and a part of it took so long; None if there was none that could be done."""
        self._steps = 0
        if seconds is not None:
            self._took.append(seconds)

    def starved(self, waiting: int) -> bool:
        """Whether other work comes before the step that is due, where so many calls wait to speak."""
        return self._steps >= max(1, STARVED // max(1, waiting))

    def has_time(self, now: float, due: float | None) -> bool:
        """Whether a part like the last ones leaves the step that is `due` next time; None: nothing waits."""
        took = max(self._took, default=0.0)
        return due is None or took > _LONG_PART or now + took - due <= FRAME - LATEST
