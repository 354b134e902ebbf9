"""What we say: sound from the call, cut to 20 ms, waiting for the ticker. Pure.

The call hands over 80 ms at a time and the ticker takes 20. A cushion of one tick lies between the two,
so that a frame a little late leaves no hole. After a stall frames come in a burst: quiet ones are left
out, and beyond the limit the oldest go, so that the delay of a stall does not stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gateway.audio import LONGEST_HOLE, MOST_WAITING_SECONDS, QUIET, level

FRAME_BYTES = 320
SECONDS = 0.02
CUSHION = 1
"""Ticks that sound waits after the queue was empty."""
RELAXED = 6
"""Frames that may wait, 120 ms, before quiet ones are left out."""
LIMIT = round(MOST_WAITING_SECONDS / SECONDS)
"""Frames that may wait at all."""


class TalkQueue:
    """One call's."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._wait = CUSHION
        self._begun = False
        self._silent = 0
        """Ticks since the last that had something to say."""
        self.handed = 0
        """20 ms of sound that were handed over so far."""
        self.missing = 0
        """20 ms of silence in place of sound that came too late; see LONGEST_HOLE."""
        self.dropped = 0
        """20 ms of sound left out because too much waited."""
        self.shortened = 0
        """20 ms of pauses left out to catch up."""
        self.unsent = 0
        """20 ms of sound whose turn came while nothing could be sent."""
        self._unheard: list[int] = []
        """Which were dropped or not sent since the last `push`, counted as `handed` counts them."""

    def push(self, pcm: bytes) -> Sequence[int]:
        """int16 sound at 8 kHz, whole frames of 20 ms. Raises ValueError for anything else.

        Returns which 20 ms nobody hears, pauses aside, as far as that became known since the last: how many of them
        before the last of these each was handed over.
        """
        if len(pcm) % FRAME_BYTES:
            raise ValueError(f"{len(pcm)} bytes are not whole frames of 20 ms")
        frames = self._frames
        self.handed += len(pcm) // FRAME_BYTES
        for start in range(0, len(pcm), FRAME_BYTES):
            frames.append(pcm[start : start + FRAME_BYTES])
        while len(frames) > LIMIT:
            if level(frames.popleft()) < QUIET:
                self.shortened += 1
            else:
                self.dropped += 1
                self._unheard.append(self.gone - 1)
        unheard, self._unheard = self._unheard, []
        return [self.handed - 1 - one for one in unheard]

    def not_sent(self) -> None:
        """What `pop` gave last could not be sent."""
        self.unsent += 1
        self._unheard.append(self.gone - 1)

    def pop(self) -> bytes | None:
        """The next 20 ms; None when there is nothing to say."""
        frames = self._frames
        if not frames:
            self._wait = CUSHION
            self._silent += 1
            return None
        if self._wait:
            self._wait -= 1
            self._silent += 1
            return None
        if self._begun:
            self.missing += min(self._silent, LONGEST_HOLE)
        self._begun, self._silent = True, 0
        frame = frames.popleft()
        while len(frames) > RELAXED and level(frame) < QUIET:
            frame = frames.popleft()
            self.shortened += 1
        return frame

    def skip(self, ticks: int) -> None:
        """These many ticks did not come: the line was silent."""
        self._silent += ticks

    def clear(self) -> None:
        """Forget what waits; the silence that follows was asked for."""
        self._frames.clear()
        self._begun = False

    @property
    def gone(self) -> int:
        """How many of them do not wait any more: they have had their turn, were left out or were forgotten."""
        return self.handed - len(self._frames)

    @property
    def unheard(self) -> float:
        """Seconds of sound that wait here."""
        return SECONDS * len(self._frames)
