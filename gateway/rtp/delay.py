"""How much delay a stream needs: the spread of its packets' transit times. Pure.

A packet's transit is its arrival minus its timestamp, both in samples, so it carries an unknown but
constant offset. The fastest packet of the last ten seconds is the network's floor; how far the slowest
ones lie above it is the jitter that a buffer must cover. Clock skew moves the floor slowly, and the
target follows it.
"""

from __future__ import annotations

from collections import deque

RATE = 8_000
MIN_DELAY = 200
"""Samples; 25 ms: a frame's 20, and what stretching must see ahead when the clocks drift apart."""
MAX_DELAY = 960
"""Samples; 120 ms."""
START_DELAY = 320
"""Samples; 40 ms, until the stream has shown what it needs."""
MARGIN = 80
"""Samples kept above the slowest packet's transit: 10 ms."""
SECONDS = 10
"""How long a packet's transit is remembered."""
_LEARNING = 50
"""Packets before the measured spread is believed."""


class DelayEstimator:
    """Gives `target`, the transit up to which packets shall be waited for."""

    def __init__(self) -> None:
        self.fastest = 0.0
        self.target = 0.0
        """In the unit of `transit`: a sample plays when its own transit has reached this."""
        self._floors: deque[float] = deque(maxlen=SECONDS)
        self._ceilings: deque[float] = deque(maxlen=SECONDS)
        self._slowest = 0.0
        self._low = 0.0
        self._high = 0.0
        self._second = 0.0
        self._until = 0.0
        self._seen = 0

    def reset(self) -> None:
        """Another stream: forget all transits."""
        self._seen = 0
        self._floors.clear()
        self._ceilings.clear()

    def observe(self, transit: float, now: float) -> None:
        """One packet's transit in samples, it arrived at `now` seconds."""
        self._seen += 1
        if self._seen == 1:
            self.fastest = self._slowest = transit
            self._begin_second(transit, now)
        elif now >= self._until:
            self._end_second()
            self._begin_second(transit, now)
        elif transit < self._low:
            self._low = transit
            if transit < self.fastest:
                self.fastest = transit
                self._set_target()
        elif transit > self._second:
            # The slowest packet of a second alone is not worth delaying all others.
            self._second = min(transit, self._high)
            self._high = max(transit, self._high)
            if self._second > self._slowest:
                self._slowest = self._second
                self._set_target()
        if self._seen == _LEARNING:
            self._set_target()

    def _begin_second(self, transit: float, now: float) -> None:
        self._low = self._high = self._second = transit
        self._until = now + 1.0
        self.fastest = min(transit, *self._floors) if self._floors else min(transit, self.fastest)
        self._slowest = max(self.fastest, *self._ceilings) if self._ceilings else self.fastest
        self._set_target()

    def _end_second(self) -> None:
        self._floors.append(self._low)
        self._ceilings.append(self._second)

    def _set_target(self) -> None:
        least = MIN_DELAY if self._seen >= _LEARNING else START_DELAY
        spread = self._slowest - self.fastest + MARGIN
        self.target = self.fastest + min(max(spread, least), MAX_DELAY)
