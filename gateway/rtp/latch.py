"""Which address the peer's sound really comes from (symmetric RTP, RFC 4961). Pure.

A peer behind NAT does not know the address its packets will carry, so we answer to where they come
from: once, early in the call, and on one synchronisation source. The address from the SDP is believed
at its first packet, any other only after three packets in sequence, and only until the window closes;
whoever comes later with a better idea is a stranger.
"""

from __future__ import annotations

from gateway.rtp.packet import RtpPacket

Addr = tuple[str, int]

WINDOW = 10.0
"""Seconds after the peer's address was agreed in which another may take its place."""
PROBATION = 3
"""Packets in sequence that show a source not named in the SDP to be one."""
_MAX_CANDIDATES = 8


class Latch:
    """One call's; armed anew when a re-INVITE moves the peer."""

    def __init__(self, expected: Addr | None, now: float, symmetric: bool = True) -> None:
        self.expected = expected
        self.source: Addr | None = None
        """The one address that is listened to, once known."""
        self._until = now + WINDOW if symmetric else now
        self._candidates: dict[tuple[Addr, int], list[RtpPacket]] = {}

    def consider(self, packet: RtpPacket, source: Addr, now: float) -> list[RtpPacket] | None:
        """Before a source is known: the packets to take, this one last, or None to wait; empty for a stranger."""
        if source == self.expected:
            self._settle(source)
            return [packet]
        if now > self._until:
            return []
        key = (source, packet.ssrc)
        seen = self._candidates.get(key)
        if seen is None:
            if len(self._candidates) >= _MAX_CANDIDATES:
                return []
            seen = self._candidates[key] = []
        if seen and packet.sequence != (seen[-1].sequence + 1) & 0xFFFF:
            seen.clear()
        seen.append(packet)
        if len(seen) < PROBATION:
            return None
        self._settle(source)
        return seen

    def _settle(self, source: Addr) -> None:
        self.source = source
        self._candidates = {}
