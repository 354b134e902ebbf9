"""UDP port pairs for calls, out of a configured range. Owns the binding; knows no packets."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

EXPEDITED_FORWARDING = 46 << 2
"""DSCP EF in the traffic class byte (RFC 3246): voice."""


class PortsExhausted(Exception):
    """Every pair of the range is in use; the message names the range. One call is refused."""


class PortRange:
    """Pairs of an even port for RTP and the odd one above for RTCP (RFC 3550, section 11).

    They are given out in turn, so that a pair rests as long as possible before another call has it.
    """

    def __init__(self, host: str, low: int, high: int, start: int = 0) -> None:
        """Ports `low` to `high`, both included; `start` is any number, to begin somewhere else each time.

        Raises ValueError when the range has no pair.
        """
        first = low + low % 2
        count = (high - first + 1) // 2
        if not 0 < low <= high < 65_536 or count < 1:
            raise ValueError(f"{low}-{high} is no range of UDP ports with an even one and the next above it")
        self.host = host
        self._first = first
        self._count = count
        self._next = start % count
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._range = f"{low}-{high}"

    def __len__(self) -> int:
        return self._count

    def bind(self) -> tuple[socket.socket, socket.socket]:
        """The next free pair, RTP's first, non-blocking. Raises PortsExhausted."""
        for _ in range(self._count):
            port = self._first + 2 * self._next
            self._next = (self._next + 1) % self._count
            if (rtp := self._open(port)) is None:
                continue
            if (rtcp := self._open(port + 1)) is not None:
                return rtp, rtcp
            rtp.close()
        raise PortsExhausted(f"no free pair of UDP ports is left in {self._range} on {self.host}")

    def _open(self, port: int) -> socket.socket | None:
        opened = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            if self._family == socket.AF_INET6:
                # Left to itself it would depend on the system whether IPv4 comes in on [::], as signalling does.
                alone = not ipaddress.ip_address(self.host).is_unspecified
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
            opened.bind((self.host, port))
        except OSError:
            opened.close()
            return None
        opened.setblocking(False)
        level, option = socket.IPPROTO_IP, socket.IP_TOS
        if self._family == socket.AF_INET6:
            level, option = socket.IPPROTO_IPV6, socket.IPV6_TCLASS
        with suppress(OSError):
            opened.setsockopt(level, option, EXPEDITED_FORWARDING)
        return opened
