"""What the caller's ear hears: the carrier's playout queue, as Twilio documents it. Pure.

Everything the gateway sends is buffered and played in real time, 20 ms at a time; a mark comes back
when all that was queued before it has been played, or when `clear` empties the queue (Media Streams,
"Messages to Twilio"). Time is an argument in seconds. Knows no sockets and no messages.

There is no cushion: the first piece is heard on the next 20 ms tick, so a gateway that sends late is
heard as a gap. That is stricter than a real line, and shows what the gateway does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FRAME_SECONDS = 0.02
FRAME_BYTES = 320
"""20 ms of int16 at 8 kHz."""
SILENCE = bytes(FRAME_BYTES)
MAX_QUEUED = 600.0
"""Seconds the queue holds at most. What comes beyond is counted as refused, not stored."""
GAP_IS_LOSS = 0.5
"""A queue that runs dry and fills again within so many seconds lost sound; a longer gap is a pause."""


@dataclass(slots=True)
class PlayoutCounts:
    """All in 20 ms frames but `underruns`."""

    received: int = 0
    """What the gateway sent."""
    cleared: int = 0
    """Queued, then emptied by `clear` before it was heard."""
    refused: int = 0
    """Beyond what the queue holds."""
    underruns: int = 0
    """How often the queue ran dry while sound was coming."""
    lost: int = 0
    """Silence heard in those gaps."""


class Playout:
    """The queue between the gateway's socket and the caller's ear; tick 0 ends at `start` + 20 ms."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._ticks = 0
        self._queue: deque[bytearray | str] = deque()
        self._queued_bytes = 0
        self._heard: list[bytes] = []
        self._returned: list[str] = []
        self._gap = 0
        self._running = False
        self._received_bytes = 0
        self._cleared_bytes = 0
        self.counts = PlayoutCounts()

    @property
    def queued(self) -> float:
        """Seconds waiting to be heard."""
        return self._queued_bytes / FRAME_BYTES * FRAME_SECONDS

    def media(self, pcm: bytes, now: float) -> None:
        """Sound from the gateway: int16 at 8 kHz, any length."""
        self._advance(now)
        self._received_bytes += len(pcm)
        self.counts.received = self._received_bytes // FRAME_BYTES
        if self.queued >= MAX_QUEUED:
            self.counts.refused += len(pcm) // FRAME_BYTES
            return
        if self._running and 0 < self._gap <= GAP_IS_LOSS / FRAME_SECONDS:
            self.counts.underruns += 1
            self.counts.lost += self._gap
        self._running, self._gap = True, 0
        self._queue.append(bytearray(pcm))
        self._queued_bytes += len(pcm)

    def mark(self, name: str, now: float) -> None:
        """A mark from the gateway: returned at once when nothing is queued before it."""
        self._advance(now)
        self._queue.append(name)
        self._return_marks()

    def clear(self, now: float) -> None:
        """Empty the queue; its marks come back. The silence that follows was asked for: it is no underrun."""
        self._advance(now)
        self._returned += [item for item in self._queue if isinstance(item, str)]
        self._queue.clear()
        self._cleared_bytes += self._queued_bytes
        self.counts.cleared = self._cleared_bytes // FRAME_BYTES
        self._queued_bytes = 0
        self._running = False

    def heard(self, now: float) -> tuple[list[bytes], list[str]]:
        """What the ear heard since the last time, in 20 ms frames, and the marks that came back."""
        self._advance(now)
        heard, self._heard = self._heard, []
        returned, self._returned = self._returned, []
        return heard, returned

    def _advance(self, now: float) -> None:
        # Half a microsecond of grace: the caller computes tick times in floating point.
        due = int((now - self._start) / FRAME_SECONDS + 5e-7)
        while self._ticks < due:
            self._ticks += 1
            self._heard.append(self._next_frame())
            self._return_marks()

    def _next_frame(self) -> bytes:
        if not self._queued_bytes:
            self._gap += 1
            return SILENCE
        frame = bytearray()
        while len(frame) < FRAME_BYTES and self._queued_bytes:
            self._return_marks()
            piece = self._queue[0]
            assert isinstance(piece, bytearray)
            take = piece[: FRAME_BYTES - len(frame)]
            del piece[: len(take)]
            frame += take
            self._queued_bytes -= len(take)
            if not piece:
                self._queue.popleft()
        return bytes(frame.ljust(FRAME_BYTES, b"\0"))

    def _return_marks(self) -> None:
        while self._queue and not (isinstance(self._queue[0], bytearray) and self._queue[0]):
            item = self._queue.popleft()
            if isinstance(item, str):
                self._returned.append(item)
