"""One call's RTP sockets around its `MediaStream`, and the clock that drives it. Thin.

Owns a pair of UDP ports from `open` to `close`. There is no task, no transport and no queue here. At each
tick what has come is read, what is due is played, and what is to be said is sent, all on non-blocking
sockets: sound is not needed before it is played, so nobody wakes this process for each packet. When a
packet came is the kernel's to say, which knows it better than whoever reads late.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import struct
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.rtp.latch import Addr
from gateway.rtp.plan import Identity, MediaPlan, MediaReport
from gateway.rtp.ports import PortRange
from gateway.rtp.stream import MediaStream, unheard
from gateway.rtp.talk import FRAME_BYTES
from gateway.rtp.ticker import TICK, Ticker

RECEIVE_BUFFER = 1 << 16
"""Bytes the kernel keeps for one call: seconds of sound, so that a stall of the loop loses nothing."""

LARGEST = 2_048
"""Bytes read of a datagram; what is longer is no telephone's."""

MOST_READ = 16
"""Datagrams taken of one call at a tick: a telephone sends one or two, a flood costs no more than this."""

WHOLE_TICK = 172
"""Bytes of a packet that holds 20 ms of sound; none is due behind it before the next tick."""

OLDEST = 0.5
"""Seconds for which a packet's stamp is believed: beyond, the wall clock was set."""

_MAPPED = "::ffff:"
"""Before the address of an IPv4 peer on a socket of IPv6 (RFC 4291, section 2.5.5.2)."""

_STAMP = struct.Struct("@qq")
_ANCILLARY = socket.CMSG_SPACE(_STAMP.size)
# Linux: the time of arrival as a timespec with each datagram; of socket.SO_TIMESTAMPNS Python knows no name.
_SO_TIMESTAMPNS = 35


def new_identity() -> Identity:
    """Random beginnings for one call, and a name for its reports (RFC 7022, section 4.2)."""
    name = b64encode(secrets.token_bytes(12)).decode("ascii")
    return Identity(secrets.randbits(32), secrets.randbits(16), secrets.randbits(32), name)


class RtpSession:
    """One call's media: `open`, put `local_port` in the SDP, `start(plan)` once it is agreed, `close`."""

    def __init__(self, rtp: socket.socket, rtcp: socket.socket, ticker: Ticker, identity: Identity) -> None:
        self.local_port: int = rtp.getsockname()[1]
        self.send_errors = 0
        """Datagrams the kernel did not take."""
        self._rtp = rtp
        self._rtcp = rtcp
        self._ipv6 = rtp.family == socket.AF_INET6
        self._ticker = ticker
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._stream: MediaStream | None = None
        self._on_frame: Callable[[bytes], object] | None = None
        self._on_digit: Callable[[str], None] | None = None
        self.on_broken: Callable[[], None] | None = None
        """Called once, outside the tick, when this session raised in one: its line is to be ended."""
        self._one_a_tick = False
        """The last tick brought one packet."""
        self._closed = False

    @classmethod
    def open(cls, ports: PortRange, ticker: Ticker, identity: Identity | None = None) -> RtpSession:
        """Bind a pair of ports. Raises PortsExhausted. Packets are taken from `start` on."""
        rtp, rtcp = ports.bind()
        rtp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if sys.platform == "linux":
            with suppress(OSError):
                rtp.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        session = cls(rtp, rtcp, ticker, identity or new_identity())
        session._loop.add_reader(rtcp, session._read_rtcp)
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
        if self._on_digit is not None:
            self._stream.on_digit = self._on_digit
        self._forget_early()
        self._ticker.add(self)

    def _forget_early(self) -> None:
        """What came before anything was agreed is of no stream that is known."""
        with suppress(OSError):
            while True:
                self._rtp.recv(1)

    def listen(self, on_frame: Callable[[bytes], object]) -> None:
        """From now on `on_frame` is given the caller's sound: 320 bytes of int16 every 20 ms.

        Nothing comes before the peer's first packet, nor once it has sent nothing for a second. It is
        called from the ticker; it must be quick and never raises.
        """
        self._on_frame = on_frame
        if self._stream is not None:
            self._stream.on_frame = on_frame

    def on_digit(self, pressed: Callable[[str], None]) -> None:
        """From now on `pressed` is given each key the caller presses, once; it never raises."""
        self._on_digit = pressed
        if self._stream is not None:
            self._stream.on_digit = pressed

    def send(self, pcm: bytes) -> Sequence[int]:
        """Our sound, int16 at 8 kHz, any number of whole 20 ms. It leaves with the clock.

        Returns which 20 ms nobody hears: see `TalkQueue.push`. Before anything is agreed that is all of it.
        """
        if self._stream is None:
            return range(len(pcm) // FRAME_BYTES)
        return self._stream.sender.talk.push(pcm)

    def flush(self) -> None:
        """Drop what has not left yet."""
        if self._stream is not None:
            self._stream.sender.talk.clear()

    def send_digits(self, digits: str) -> None:
        """Press keys at the far end, 200 ms each. Raises ValueError for what is no key, or far too many.

        Goes nowhere unless telephone-event was agreed: see the plan's `dtmf_type`.
        """
        if self._stream is not None:
            self._stream.sender.digits.push(digits)

    @property
    def unheard(self) -> float:
        """Seconds of our sound that have not left yet."""
        return 0.0 if self._stream is None else self._stream.sender.talk.unheard

    @property
    def progress(self) -> tuple[int, int, int]:
        """How many 20 ms of our sound were to be sent so far, how many of them do not wait any more, and of how many
        the turn came while nothing could be sent."""
        if self._stream is None:
            return 0, 0, 0
        talk = self._stream.sender.talk
        return talk.handed, talk.gone, talk.unsent

    @property
    def lost(self) -> int:
        """20 ms of our sound that came too late, or were left out as too much waited."""
        if self._stream is None:
            return 0
        talk = self._stream.sender.talk
        return talk.missing + talk.dropped

    def close(self) -> None:
        """Tell the peer's RTCP goodbye and give the ports back. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._ticker.remove(self)
        if self._stream is not None:
            self._report(self._stream, self._now(), goodbye=True)
        self._loop.remove_reader(self._rtcp)
        self._rtp.close()
        self._rtcp.close()
        # Whoever listened holds this session, and would wait with it for the garbage collector.
        self.listen(unheard)
        self.on_digit(unheard)
        self.on_broken = None

    def send_due(self, now: float) -> None:
        """The ticker's."""
        stream = self._stream
        if stream is None or self._closed:
            return
        packets = stream.say()
        remote = stream.remote
        if remote is not None:
            for data in packets:
                self._send_to(self._rtp, data, remote)

    def tick(self, now: float) -> None:
        """The ticker's."""
        stream = self._stream
        if stream is None or self._closed:
            return
        self._read_rtp(stream)
        stream.hear(now)
        if now >= stream.reporter.due:
            self._report(stream, now)

    def skip(self, ticks: int) -> None:
        """The ticker's."""
        if self._stream is not None:
            self._stream.skip(ticks)

    def broke(self) -> None:
        """The ticker's."""
        if self.on_broken is not None:
            self._loop.call_soon(self.on_broken)

    def summary(self) -> MediaReport | None:
        """The call's figures; None if no media were ever agreed."""
        return self._stream.summary() if self._stream is not None else None

    def _report(self, stream: MediaStream, now: float, goodbye: bool = False) -> None:
        data = stream.report(now, time.time(), random.random(), goodbye)
        remote = stream.remote_rtcp
        if remote is not None:
            self._send_to(self._rtp if stream.plan.rtcp_mux else self._rtcp, data, remote)

    def _send_to(self, sock: socket.socket, data: bytes, remote: Addr) -> None:
        if self._ipv6 and ":" not in remote[0]:
            remote = (_MAPPED + remote[0], remote[1])
        try:
            sock.sendto(data, remote)
        except OSError:
            self.send_errors += 1

    def _read_rtp(self, stream: MediaStream) -> None:
        """What came since the last tick.

        To find that nothing is left costs as much as to read a packet. Where the last tick brought one, and this one's
        is the next in sequence, whole, and younger than a tick, nothing is behind it that could not wait for the next.
        """
        receive, to_loop = self._rtp.recvmsg, self._ticker.wall_to_loop
        for count in range(MOST_READ):
            try:
                data, extra, _, source = receive(LARGEST, _ANCILLARY)
            except OSError:
                self._one_a_tick = count == 1
                return
            arrived = now = self._now()
            if extra:
                seconds, nanoseconds = _STAMP.unpack_from(extra[0][2])
                stamped = seconds + nanoseconds * 1e-9 + to_loop
                if now - OLDEST < stamped < now:
                    arrived = stamped
            due = stream.receive_rtp(data, source if len(source) == 2 else _addr(source), arrived)
            if due and self._one_a_tick and count == 0 and 0 < now - arrived < TICK and len(data) >= WHOLE_TICK:
                return
            if self._closed:
                return
        self._one_a_tick = False

    def _read_rtcp(self) -> None:
        try:
            data, source = self._rtcp.recvfrom(LARGEST)
        except OSError:
            return
        if self._stream is not None:
            self._stream.receive_rtcp(data, _addr(source), self._now())


def _addr(source: tuple[str, int]) -> Addr:
    """Where a datagram comes from, a mapped address as the IPv4 one that the SDP names."""
    host, port = source[:2]
    return (host.removeprefix(_MAPPED) if "." in host else host), port
