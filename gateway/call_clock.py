"""A call's clock: a tick every 80 ms, set once by the line's own frames and kept to from then on.

Owns when a tick is due. Knows of the line only when its frames came and how many of them wait, and
nothing of the engine, the sound or the call's end.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from gateway.audio import CARRIER_FRAME_SECONDS, JitterBuffer
from model.wire import FRAME_SECONDS

FIRST_FRAME_WAIT = 0.2
"""Seconds the clock waits for the line's first sound; a line that stays silent gets its agent all the same."""
FIRST_TICK_FRAMES = JitterBuffer.FRAMES_PER_TICK + JitterBuffer.TARGET
"""Carrier frames that the first tick waits for: those it takes, and 40 ms against jitter."""
BEHIND_CARRIER = 0.005
"""The clock ticks this long after a carrier's frame is due, so that the two do not race."""
ALIGNED = 0.002
"""How much later than that still counts as that, when the clock is set."""
ALIGN_TRIES = 3
LATE_TICK = 0.02
"""A tick later than this is counted as a missed deadline."""
STOOD_STILL = 1.0
"""A tick later than this means that this process did not run; the clock is set anew."""
KEPT_TICKS = 100
"""Of which it is known when they came: 8 s."""


class CallClock:
    """Ticks of one call, on the running event loop's time. `waiting` is what its line's frames are put into."""

    def __init__(self, waiting: JitterBuffer) -> None:
        self.now = asyncio.get_running_loop().time
        self.began = self.now()
        self.last_media = self.began
        """When the line was last heard, or need not have been."""
        self.first_tick = self.began
        """When frame 0 was due; the call's time counts from here."""
        self._waiting = waiting
        self._heard = asyncio.Event()
        self._ticks = 0
        self._ticked: deque[float] = deque(maxlen=KEPT_TICKS)
        """When each came, the newest."""

    def heard(self) -> None:
        """A frame of the line's sound came, and waits."""
        self.last_media = self.now()
        if not self._heard.is_set():
            self._heard.set()

    async def start(self) -> None:
        """Set the clock by the line's first sound, or go on without it after `FIRST_FRAME_WAIT`."""
        timer = asyncio.get_running_loop().call_later(FIRST_FRAME_WAIT, self._heard.set)
        await self._heard.wait()
        if len(self._waiting) > 1 and self.now() < timer.when():
            # What waited for us came at once, and does not tell when this line's frames are due; the next does.
            self._heard.clear()
            await self._heard.wait()
        timer.cancel()
        if not len(self._waiting):
            self.last_media = self.now()
        missing = max(0, FIRST_TICK_FRAMES - len(self._waiting))
        self.first_tick = max(self.now(), self.last_media + missing * CARRIER_FRAME_SECONDS + BEHIND_CARRIER)
        await self._align()

    async def _align(self) -> None:
        """Move the first tick to just after a frame that was on time; the one it was set by may have been late.

        What it is late by would be delay for the whole call.
        """
        for _ in range(ALIGN_TRIES):
            await asyncio.sleep(self.first_tick - self.now())
            age = self.now() - self.last_media
            if age <= BEHIND_CARRIER + ALIGNED or age > CARRIER_FRAME_SECONDS + BEHIND_CARRIER:
                return
            self.first_tick = self.last_media + CARRIER_FRAME_SECONDS + BEHIND_CARRIER

    async def tick(self) -> float:
        """Wait until the next tick is due. Returns by how many seconds it was missed, 0.0 when it was not.

        A late tick is followed by an early one; none is skipped unless the process stood still.
        """
        due = self.first_tick + self._ticks * FRAME_SECONDS
        self._ticks += 1
        await asyncio.sleep(max(0.0, due - self.now()))
        late = self.now() - due
        if late <= LATE_TICK:
            self._ticked.append(self.now())
            return 0.0
        if late > STOOD_STILL:
            # The machine slept or was moved. Nobody else stood still: none of what they failed to
            # do in that time counts against them, and sound that old is of no use to anybody.
            self.first_tick += late
            self.last_media = self.now()
        # Lets what has arrived meanwhile be read, so that catching up is not taken for silence.
        await asyncio.sleep(0)
        self._ticked.append(self.now())
        return late

    def overdue(self, waiting: int) -> int:
        """How many of the frames of the last `waiting` ticks have waited for longer than a tick.

        Those of a burst are due a tick apart, as for the engine (`model.scheduler`).
        """
        wanted, count = -math.inf, 0
        for came in list(self._ticked)[max(0, len(self._ticked) - waiting) :]:
            wanted = max(came, wanted + FRAME_SECONDS)
            count += self.now() - wanted > FRAME_SECONDS
        return count
