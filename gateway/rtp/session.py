"""One call's RTP sockets around its `MediaStream`, and the clock that drives it. Thin.

Owns a pair of UDP ports from `open` to `close`. There is no task and no queue here: a datagram is
taken in the callback that reads it, and the ticker sends directly on the non-blocking socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from gateway.rtp.latch import Addr
from gateway.rtp.ports import PortRange
from gateway.rtp.stream import Identity, MediaPlan, MediaStream
from gateway.rtp.ticker import Ticker


class _Receiver(asyncio.DatagramProtocol):
    """The reading end of a socket."""

    def __init__(self, take: Callable[[bytes, Any], None]) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._take(data, addr)


class RtpSession:
    """One call's media. `await open(...)`, put `local_port` in the SDP, `start(plan)` with the answer."""

    def __init__(self, rtp: socket.socket, rtcp: socket.socket, ticker: Ticker, identity: Identity) -> None:
        self.local_port: int = rtp.getsockname()[1]
        self.send_errors = 0
        """Datagrams the kernel did not take."""
        self._rtp = rtp
        self._rtcp = rtcp
        self._ticker = ticker
        self._identity = identity
        self._now = asyncio.get_running_loop().time
        self._stream: MediaStream | None = None
        self._on_frame: Callable[[bytes], None] | None = None
        self._transports: list[asyncio.DatagramTransport] = []
        self._closed = False

    @classmethod
    async def open(cls, ports: PortRange, ticker: Ticker, identity: Identity) -> RtpSession:
        """Bind a pair of ports. Raises PortsExhausted. Packets are taken from `start` on."""
        rtp, rtcp = ports.bind()
        session = cls(rtp, rtcp, ticker, identity)
        loop = asyncio.get_running_loop()
        for sock, take in ((rtp, session._take_rtp), (rtcp, session._take_rtcp)):
            transport, _ = await loop.create_datagram_endpoint(lambda take=take: _Receiver(take), sock=sock)  # type: ignore[misc]
            session._transports.append(transport)
        return session

    @property
    def stream(self) -> MediaStream | None:
        """The media themselves, once started: counters, delay."""
        return self._stream

    def start(self, plan: MediaPlan) -> None:
        """Offer and answer are agreed: sound flows. Called again after a re-INVITE, it changes the plan."""
        if self._closed:
            return
        if self._stream is not None:
            self._stream.change(plan, self._now())
            return
        self._stream = MediaStream(self._identity, plan, self._now())
        if self._on_frame is not None:
            self._stream.on_frame = self._on_frame
        self._ticker.add(self)

    def listen(self, on_frame: Callable[[bytes], None]) -> None:
        """From now on `on_frame` is given the caller's sound: 320 bytes of int16 every 20 ms.

        Nothing comes before the peer's first packet, nor once it has sent nothing for a second. It is
        called from the ticker; it must be quick and never raises.
        """
        self._on_frame = on_frame
        if self._stream is not None:
            self._stream.on_frame = on_frame

    def send(self, pcm: bytes) -> None:
        """Our sound, int16 at 8 kHz, any number of whole 20 ms. It leaves with the clock."""
        if self._stream is not None:
            self._stream.talk.push(pcm)

    def flush(self) -> None:
        """Drop what has not left yet."""
        if self._stream is not None:
            self._stream.talk.clear()

    @property
    def unheard(self) -> float:
        """Seconds of our sound that have not left yet."""
        return 0.0 if self._stream is None else self._stream.talk.unheard

    def close(self) -> None:
        """Give the ports back. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._ticker.remove(self)
        for transport in self._transports:
            transport.abort()
        self._rtp.close()
        self._rtcp.close()

    def tick(self, now: float) -> None:
        """The ticker's."""
        stream = self._stream
        assert stream is not None
        for data in stream.tick(now):
            if (remote := stream.remote) is not None:
                self._send_to(self._rtp, data, remote)

    def skip(self, ticks: int) -> None:
        """The ticker's."""
        if self._stream is not None:
            self._stream.skip(ticks)

    def _send_to(self, sock: socket.socket, data: bytes, remote: Addr) -> None:
        try:
            sock.sendto(data, remote)
        except OSError:
            self.send_errors += 1

    def _take_rtp(self, data: bytes, addr: Any) -> None:
        if self._stream is not None:
            self._stream.receive_rtp(data, addr if len(addr) == 2 else addr[:2], self._now())

    def _take_rtcp(self, data: bytes, addr: Any) -> None:
        """Reports of the peer."""
