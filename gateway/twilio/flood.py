"""How much faster than real time one stream may talk to us. Pure: `now` comes in as an argument.

A line delivers 50 frames a second. Bursts are normal after a stall of the network, so messages draw
on a budget of a few seconds that refills with the clock; beyond it sound is dropped, and a peer that
goes on is cut off. What it costs is then bounded for each call, whatever the peer does.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.twilio.protocol import PeerError


@dataclass(slots=True)
class FloodGuard:
    """A token bucket over the messages of one stream."""

    now: float
    """When the stream began, in seconds of the caller's clock."""
    rate: float = 60.0
    """Messages a second that are always fine: 50 of media, and some marks and keys."""
    burst: float = 120.0
    """Messages that may come ahead of the clock: 2 s."""
    patience: int = 500
    """Messages over the budget, 10 s of sound, before the stream is given up."""
    dropped: int = 0
    """Messages over the budget so far; the caller drops their sound."""
    _budget: float = 120.0
    _over: int = 0

    def admit(self, now: float) -> bool:
        """Whether one more message is within the budget. Raises PeerError when it goes on too long."""
        budget = min(self.burst, self._budget + (now - self.now) * self.rate)
        self.now = now
        if budget >= 1.0:
            self._budget = budget - 1.0
            if budget >= self.burst / 2:
                self._over = 0
            return True
        self._budget = budget
        self.dropped += 1
        self._over += 1
        if self._over > self.patience:
            raise PeerError("media came many times faster than real time")
        return False
