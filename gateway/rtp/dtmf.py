"""Keypad digits as telephone-event packets, both ways (RFC 4733). Pure.

An event is told many times over while its key is down, always with the timestamp of its beginning, so
one packet of all that get through is enough: the digit is reported with the first.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import NamedTuple

DIGITS = "0123456789*#ABCD"
"""Events 0 to 15 (RFC 4733, section 3.2)."""
TICK_SAMPLES = 160
TONE_TICKS = 5
"""A key is down for 100 ms."""
GAP_TICKS = 5
"""And up for 100 ms, in the first 40 of which its end is told twice more."""
LONGEST = 0xFFFF
"""Samples one event can say it has lasted; a longer one goes on in another segment (section 2.5.1.3)."""
MAX_WAITING = 64
_VOLUME = 10
"""-10 dBm0."""
_END = 0x80
_EVENT = Struct("!BBH")
_REMEMBERED = 8
_HALF, _WRAP = 1 << 31, 1 << 32


class DtmfReceiver:
    """One source's events."""

    def __init__(self) -> None:
        self._seen: deque[int] = deque(maxlen=_REMEMBERED)
        """Timestamps of the newest events."""
        self._event = -1
        self._timestamp = 0
        self._duration = 0
        self._ended = True
        self.malformed = 0

    def receive(self, timestamp: int, marker: bool, payload: bytes) -> str | None:
        """One packet; the digit if this is the first that tells of it. Flash and tones are passed over."""
        if len(payload) < _EVENT.size:
            self.malformed += 1
            return None
        event, flags, duration = _EVENT.unpack_from(payload)
        if timestamp in self._seen:
            if timestamp == self._timestamp:
                self._duration = max(self._duration, duration)
                self._ended = self._ended or bool(flags & _END)
            return None
        fresh = self._is_new(event, timestamp, marker, duration)
        self._seen.append(timestamp)
        if not self._older(timestamp):
            self._event, self._timestamp, self._duration = event, timestamp, duration
            self._ended = bool(flags & _END)
        return DIGITS[event] if fresh and event < len(DIGITS) else None

    def _older(self, timestamp: int) -> bool:
        """Whether the packet is of an event before the newest: it was overtaken."""
        return self._event >= 0 and (timestamp - self._timestamp + _HALF) % _WRAP < _HALF

    def _is_new(self, event: int, timestamp: int, marker: bool, duration: int) -> bool:
        """Whether an unknown timestamp is another press of a key, not more of the last one."""
        if marker or self._ended or event != self._event:
            return True
        elapsed = (timestamp - self._timestamp) % _WRAP
        if elapsed == self._duration or (elapsed == LONGEST and self._duration > LONGEST // 2):
            return False
        # Some senders wrongly move the timestamp with each packet of one press: its duration grows on.
        return not (elapsed < LONGEST and duration > self._duration and elapsed <= 2 * (duration - self._duration))


class EventPacket(NamedTuple):
    """What the RTP packet of an event carries."""

    marker: bool
    elapsed: int
    """Samples since the event began: its timestamp is that much before now."""
    payload: bytes


class DtmfSender:
    """Digits that wait to be sent, one packet a tick."""

    def __init__(self) -> None:
        self.active = False
        """Whether the next tick belongs to a digit or the gap after it."""
        self._waiting: deque[int] = deque()
        self._event = -1
        self._ticks = 0

    def push(self, digits: str) -> None:
        """Queue digits. Raises ValueError for one that has no event, or when too many wait."""
        for digit in digits:
            if digit.upper() not in DIGITS:
                raise ValueError(f"{digit!r} is not a keypad digit")
        if len(self._waiting) + len(digits) > MAX_WAITING:
            raise ValueError(f"more than {MAX_WAITING} digits wait to be sent")
        self._waiting.extend(DIGITS.index(digit.upper()) for digit in digits)
        self.active = self.active or bool(digits)

    def pop(self) -> EventPacket | None:
        """This tick's packet; None in the gap between two digits, when sound may go."""
        if self._event < 0:
            if not self._waiting:
                return None
            self._event = self._waiting.popleft()
            self._ticks = 0
        self._ticks += 1
        if self._ticks == TONE_TICKS + GAP_TICKS:
            self._event = -1
            self.active = bool(self._waiting)
            return None
        # The end is told three times (section 2.5.1.4), a tick apart: a burst of loss is not to take all.
        if self._ticks > TONE_TICKS + 2:
            return None
        ended = self._ticks >= TONE_TICKS
        duration = TICK_SAMPLES * min(self._ticks, TONE_TICKS)
        payload = _EVENT.pack(self._event, _VOLUME | (_END if ended else 0), duration)
        return EventPacket(self._ticks == 1, TICK_SAMPLES * (self._ticks - 1), payload)
