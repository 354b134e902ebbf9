"""Tells a session that breaks its workers from one whose workers go, one after the other. Pure.

Owns the count of one session's losses. What follows from it is `gateway.resume`'s.
"""

from __future__ import annotations

from collections import deque

MAX_LOSSES, LOSSES_WITHIN = 3, 10.0
"""A session lost this often in so many seconds is what breaks the workers, those aside that are being stopped."""


class Losses:
    """Of one session. Time comes in, in seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=MAX_LOSSES)
        self._stopped: set[str] = set()
        """Workers that were being stopped: one that says so again is not believed."""

    def lost(self, now: float, worker: str, stopping: bool) -> None:
        """It was lost with the worker of that name; `stopping`: which ended it because it is being stopped."""
        if stopping and worker not in self._stopped:
            self._stopped.add(worker)
        else:
            self._times.append(now)

    def too_many(self, now: float) -> bool:
        """No worker is to take it any more."""
        return len(self._times) == MAX_LOSSES and now - self._times[0] < LOSSES_WITHIN
