"""Timers without a clock: what is due when, run by whoever knows the time.

Owns the order only. The times of RFC 3261's table 4 are here because every layer above counts in them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds (RFC 3261, section 17.1.1.1 and table 4)."""

    t1: float = 0.5
    """Round-trip time estimate: the first retransmission."""
    t2: float = 4.0
    """Longest wait between retransmissions."""
    t4: float = 5.0
    """How long a message stays in the network."""

    @property
    def lifetime(self) -> float:
        """64 x T1: after this a transaction, or a 2xx without ACK, is given up."""
        return 64 * self.t1


Action = Callable[[float], None]


class Timer:
    """One thing to do at one time, unless cancelled."""

    __slots__ = ("_queue", "action", "when")

    def __init__(self, queue: TimerQueue, when: float, action: Action) -> None:
        self.when = when
        self.action: Action | None = action
        self._queue = queue

    def cancel(self) -> None:
        """Never run; safe to call twice, or after it ran."""
        if self.action is not None:
            self.action = None
            self._queue.forget_one()


class TimerQueue:
    """Timers in the order of their times; those set first come first among equals."""

    MANY = 64
    """Fewer dead timers than this are not worth sweeping."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._set = 0
        self._dead = 0

    def __len__(self) -> int:
        """Timers that are still to run."""
        return len(self._heap) - self._dead

    def at(self, when: float, action: Action) -> Timer:
        """Run `action(now)` at `when`."""
        timer = Timer(self, when, action)
        self._set += 1
        heapq.heappush(self._heap, (when, self._set, timer))
        return timer

    def forget_one(self) -> None:
        """A timer was cancelled; the heap is swept when most of it is dead."""
        self._dead += 1
        if self._dead > self.MANY and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].action is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def next_time(self) -> float | None:
        """When the next timer is due; None when none is set."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
            self._dead -= 1
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Run what is due at `now`, timers set meanwhile included."""
        while (when := self.next_time()) is not None and when <= now:
            timer = heapq.heappop(self._heap)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action(now)
