"""One TCP or TLS connection of the SIP endpoint, whoever opened it. Thin.

Owns its bytes in and out, its keep-alives and its limits: of silence, of what may wait to be written, and of how fast
it is read. What its messages mean is the endpoint's affair.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.sip.errors import SipError
from gateway.sip.framing import PONG, StreamFramer
from gateway.sip.uri import Addr, Transport, canonical

FIRST_MESSAGE = 15.0
"""Seconds a new connection has to deliver its first whole message, and one of nobody we know to deliver the next."""
IDLE = 3_600.0
"""Seconds any other connection may be silent."""
MAX_BACKLOG = 1 << 18
"""Bytes that may wait for a peer that does not read."""


class Owner(Protocol):
    """What a connection belongs to."""

    def welcome(self, stream: Stream) -> bool:
        """Whether a new connection may stay."""

    def farewell(self, stream: Stream) -> None:
        """A connection is gone."""

    def receive(self, data: bytes, addr: Addr) -> None:
        """One whole message."""

    def knows(self, addr: Addr) -> bool:
        """Whether a peer is one of ours, or has a call with us."""

    def drop(self, cause: str, addr: Addr, count: int = 1) -> None:
        """Something that gets no answer."""


class Stream(asyncio.Protocol):
    """One connection."""

    def __init__(self, owner: Owner, transport: Transport, opened: bool = False) -> None:
        """`opened` by us."""
        self._owner = owner
        self._opened = opened
        self._kind = transport
        self._framer = StreamFramer()
        self._line: asyncio.Transport | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._answered = 0
        self.addr = Addr("", 0, transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._line = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        if not peer:
            transport.close()
            return
        self.addr = Addr(canonical(peer[0]), peer[1], self._kind)
        if not self._owner.welcome(self):
            transport.close()
            return
        self._wait(FIRST_MESSAGE)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._framer.receive(data)
        except SipError as error:
            self._owner.drop(str(error), self.addr)
            self.abort()
            return
        while self._answered < self._framer.pings:
            self._answered += 1
            self.write(PONG)
        for message in messages:
            self._owner.receive(message, self.addr)
        if messages:
            self._wait(IDLE if self._opened or self._owner.knows(self.addr) else FIRST_MESSAGE)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._limit, self._resume):
            if timer is not None:
                timer.cancel()
        self._owner.farewell(self)

    def write(self, data: bytes) -> None:
        assert self._line is not None
        if self._line.get_write_buffer_size() > MAX_BACKLOG:
            self.abort()
            return
        self._line.write(data)

    def hold_up(self, seconds: float) -> bool:
        """Read nothing for so long from now, so that the peer has to wait; False when it was waiting already."""
        if self._line is None or self._line.is_closing():
            return False
        waiting = self._resume is not None
        if self._resume is not None:
            self._resume.cancel()
        else:
            self._line.pause_reading()
        self._resume = asyncio.get_running_loop().call_later(seconds, self._go_on)
        return not waiting

    def _go_on(self) -> None:
        self._resume = None
        if self._line is not None and not self._line.is_closing():
            self._line.resume_reading()

    def abort(self) -> None:
        if self._line is not None:
            self._line.abort()

    def _wait(self, seconds: float) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = asyncio.get_running_loop().call_later(seconds, self.abort)
