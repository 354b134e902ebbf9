"""Tells a worker that hangs, or is too slow for a call, from one that is slow now and then. Pure.

Owns the judgement on one session's worker by the frames that are sent to it and answered by it. What follows
from that is `gateway.resume`'s.
"""

from __future__ import annotations

from model.wire import FRAME_SECONDS

MISSED_FRAMES = 3
"""Ticks without any answer, while answers are owed, after which a worker hangs."""
BEHIND_FRAMES = 15
"""Answers owed, 1.2 s, above which a worker is too slow: a call bears 2 s."""
EVEN_FRAMES = 7
"""Answers owed at which one that was too slow is taken to keep up again."""
BURST_SLACK = 3
"""Answers that may be owed beyond a burst, while the worker catches up with it."""


class Watch:
    """Of one session. Time comes in.

    Counted are ticks, not seconds, and of a burst of late ticks only the first: after our own process stood
    still, answers that wait to be read are not held against the worker. Nor is how much it owes after a burst,
    a resumed session's among them, as long as that grows no further.
    """

    def __init__(self) -> None:
        self.behind = False
        """It falls ever further behind, or has not caught up yet since it did."""
        self._owed = 0
        self._missed = 0
        self._allowed = BEHIND_FRAMES
        self._last = float("-inf")

    @property
    def owed(self) -> float:
        """Seconds of sound that were sent and not answered."""
        return self._owed * FRAME_SECONDS

    @property
    def hangs(self) -> bool:
        return self._missed >= MISSED_FRAMES

    @property
    def fails(self) -> bool:
        """Another worker would be better."""
        return self.hangs or self.behind

    def sent(self, now: float) -> bool:
        """A caller frame is about to be sent; whether the worker fails."""
        burst = now - self._last < FRAME_SECONDS / 2
        if self._owed and not burst:
            self._missed += 1
        self._last = now
        self._owed += 1
        if burst:
            self._allowed = max(self._allowed, self._owed + BURST_SLACK)
        self.behind = self.behind or self._owed > self._allowed
        return self.fails

    def trust(self, seconds: float) -> None:
        """It is slow and kept all the same: it is not behind again before it owes so many seconds of sound."""
        self.behind = False
        self._allowed = max(self._allowed, round(seconds / FRAME_SECONDS) - 1)

    def answered(self) -> None:
        """An agent frame came."""
        self._owed = max(0, self._owed - 1)
        self._missed = 0
        self._allowed = max(BEHIND_FRAMES, min(self._allowed, self._owed + BURST_SLACK))
        self.behind = self.behind and self._owed > EVEN_FRAMES
