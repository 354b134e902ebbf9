"""The one 20 ms clock of all calls. Owns a timer of the event loop; knows sessions only as things that tick.

Ticks are nominal: they lie exactly 20 ms apart, however late the loop gets to them, so that nothing
drifts. A late tick is followed by an early one; after a long stall ticks are left out, and said to be.
Calls are spread over phases of the 20 ms, so that hundreds of them do not all want the same instant, and
within a phase all calls' packets leave before anything else is done: what reading and playing takes for
one call, which varies, does not move the next one's packet.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Protocol

TICK = 0.02
PHASES = 10
MOST_LATE = 10
"""Ticks made up for after a stall: 200 ms. More would only fill the peer's jitter buffer."""
_STEP = TICK / PHASES


class Ticking(Protocol):
    def send_due(self, now: float) -> None:
        """20 ms have passed; `now` is the nominal time of the event loop's clock. What is to leave now leaves."""

    def tick(self, now: float) -> None:
        """The rest of what these 20 ms ask for, after every call of the phase has sent."""

    def skip(self, ticks: int) -> None:
        """These many ticks will not come."""

    def broke(self) -> None:
        """It raised, and ticks no more."""


class Ticker:
    """Runs while something ticks. To be made and used inside the loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._phases: list[list[Ticking]] = [[] for _ in range(PHASES)]
        self._step = 0
        self._timer: asyncio.TimerHandle | None = None
        self.skipped = 0
        """Ticks left out because the loop stalled."""
        self.wall_to_loop = self._loop.time() - time.time()
        """What turns Unix time into the event loop's, as of this tick."""

    def add(self, ticking: Ticking) -> None:
        """From now on it ticks."""
        min(self._phases, key=len).append(ticking)
        if self._timer is None:
            self._step = math.ceil(self._loop.time() / _STEP)
            self._schedule()

    def remove(self, ticking: Ticking) -> None:
        """It ticks no more; nothing happens if it did not."""
        for phase in self._phases:
            if ticking in phase:
                phase.remove(ticking)
        if not any(self._phases) and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._timer = self._loop.call_at(self._step * _STEP, self._fire)

    def _fire(self) -> None:
        self._timer = None
        loop_time = self._loop.time()
        self.wall_to_loop = loop_time - time.time()
        due = math.floor(loop_time / _STEP + 1e-6)
        late = (due - self._step) // PHASES - MOST_LATE
        try:
            if late > 0:
                self._leave_out(late)
            while self._step <= due:
                step, self._step = self._step, self._step + 1
                phase = tuple(self._phases[step % PHASES])
                self._tick(iter(phase), iter(phase), step * _STEP)
        finally:
            # Whatever one call does wrong, the clock is that of all.
            if any(self._phases):
                self._schedule()

    def _tick(self, sending: Iterator[Ticking], rest: Iterator[Ticking], now: float) -> None:
        """What is left of a phase's tick. One that raises ticks no more; those behind it go on all the same."""
        running: Ticking | None = None
        try:
            for running in sending:
                running.send_due(now)
            for running in rest:
                running.tick(now)
            running = None
        finally:
            if running is not None:
                self.remove(running)
                try:
                    running.broke()
                finally:
                    self._tick(sending, (one for one in rest if one is not running), now)

    def _leave_out(self, ticks: int) -> None:
        self.skipped += ticks
        self._step += ticks * PHASES
        for phase in self._phases:
            for ticking in phase:
                ticking.skip(ticks)
