"""What came of one source's packets: lost, doubled, jittered (RFC 3550, sections 6.4.1, A.1, A.3, A.8). Pure."""

from __future__ import annotations

from dataclasses import dataclass

RATE = 8_000
_MAX_DROPOUT = 3_000
_MAX_MISORDER = 100
_WINDOW = 128
"""Newest sequence numbers remembered, to tell doubles from the reordered."""
_WINDOW_MASK = (1 << _WINDOW) - 1
_HALF, _WRAP = 1 << 31, 1 << 32


@dataclass(frozen=True, slots=True)
class ReceptionReport:
    """A report block's figures about one source (RFC 3550, section 6.4.1)."""

    fraction_lost: int
    """Since the last report, in 256ths."""
    lost: int
    """Since the beginning; doubles may make it negative."""
    highest: int
    """Highest sequence number, its cycles above the low 16 bits."""
    jitter: int
    """Interarrival jitter in samples."""


class Reception:
    """One source's, from its first packet on."""

    def __init__(self, sequence: int) -> None:
        self.jitter = 0.0
        """Of the packets' arrivals, in samples."""
        self.duplicates = 0
        self.received = 0
        self.in_order = False
        """Whether the newest packet was the one after the newest before it."""
        self._lost_before = 0
        """Of a numbering the source has given up since."""
        self._expected_prior = 0
        self._lost_prior = 0
        self._timestamp = -1
        self._arrival = 0.0
        self._begin(sequence)

    def _begin(self, sequence: int) -> None:
        self._base = self._highest = sequence
        self._base_received = self.received
        self._seen = 0
        self._expected_next = -1

    @property
    def expected(self) -> int:
        return self._highest - self._base + 1

    @property
    def lost(self) -> int:
        """Packets that never came, since the beginning."""
        return self._lost_before + self.expected - (self.received - self._base_received)

    def receive(self, sequence: int) -> bool:
        """Count a packet; false if it must not be used: a double, or a number out of nowhere."""
        ahead = (sequence - self._highest) & 0xFFFF
        self.in_order = ahead == 1
        if self.in_order:
            self._highest += 1
            self._seen = (self._seen << 1 | 1) & _WINDOW_MASK
        elif not self._unusual(ahead, sequence):
            return False
        self.received += 1
        return True

    def time(self, timestamp: int, now: float) -> None:
        """A packet of sound came at `now` (A.8). Events repeat their timestamps and are not timed."""
        if self._timestamp >= 0:
            elapsed = ((timestamp - self._timestamp + _HALF) % _WRAP) - _HALF
            difference = (now - self._arrival) * RATE - elapsed
            self.jitter += (abs(difference) - self.jitter) * 0.0625
        self._timestamp = timestamp
        self._arrival = now

    def _unusual(self, ahead: int, sequence: int) -> bool:
        """Any packet but the one that was next; false to leave it."""
        if ahead == 0 or ahead > 0x10000 - _MAX_MISORDER:
            bit = 1 << (-ahead & 0xFFFF)
            if self._seen & bit:
                self.duplicates += 1
                return False
            self._seen |= bit
            return True
        if ahead < _MAX_DROPOUT:
            self._highest += ahead
            self._seen = (self._seen << ahead | 1) & _WINDOW_MASK
            return True
        if sequence != self._expected_next:
            # A.1: two packets in sequence show that the source counts anew.
            self._expected_next = (sequence + 1) & 0xFFFF
            return False
        self._lost_before = self.lost
        self._begin(sequence)
        self._seen = 1
        return True

    def report(self) -> ReceptionReport:
        """The figures now; the fraction counts from the last time this was asked (A.3)."""
        lost = self.lost
        expected = self.received + lost
        interval = expected - self._expected_prior
        missing = lost - self._lost_prior
        self._expected_prior, self._lost_prior = expected, lost
        fraction = min(255, (missing << 8) // interval) if interval > 0 and missing > 0 else 0
        lost = max(-(1 << 23), min((1 << 23) - 1, lost))
        return ReceptionReport(fraction, lost, self._highest & 0xFFFFFFFF, min(int(self.jitter), 0xFFFFFFFF))
