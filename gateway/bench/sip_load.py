"""The process that makes the SIP calls of a measurement: signalling by our own user agent, RTP as cheap as can be.

Each call has a UDP socket of its own and sends 20 ms of sound every 20 ms; what comes back is stamped by the kernel,
so that this process may be late without spoiling the figures. It reads a call's socket when it sends on it: to be woken
by each packet would cost the gateway, which pays for waking a neighbour on the same machine, and no network does that.
Knows nothing of how the gateway was started.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import uvloop
from numpy.typing import NDArray

from gateway.bench.load import SLOTS, CallsUp, Window
from gateway.rtp.packet import pack_rtp
from gateway.sip.call import SipCall
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.errors import SipError
from gateway.sip.events import Established, Event, Terminated
from gateway.sip.offer import Capabilities, Srtp, make_offer, read_answer
from gateway.sip.sdp import parse_sdp
from gateway.sip.settings import SipSettings
from gateway.sip.uri import Addr, parse_uri

_STEP = 0.001
_PACKET = 0.02
_GOODBYE_SECONDS = 5.0
_STAMP = struct.Struct("@qq")
_LARGEST = 2_048
_CAPABILITIES = Capabilities(srtp=Srtp.REFUSED, digits=False)
# The kernel's stamp is of the wall clock; of socket.SO_TIMESTAMPNS Python knows no name.
_SO_TIMESTAMPNS = 35


@dataclass(frozen=True, slots=True)
class SipOrder:
    """What a load process is to do."""

    target: str
    """sip:number@host:port of the gateway."""
    calls: int
    starts_per_second: float
    seed: int


@dataclass(slots=True)
class SipMeasured:
    """What a load process saw in the window."""

    calls: int
    silent: int
    """Calls of which nothing came back."""
    off_beat: NDArray[np.float64]
    """Seconds by which the time between two packets in sequence was not 20 ms."""
    sent: int
    received: int
    missing: int
    """Numbers left out in what came back."""
    lateness: NDArray[np.float64]


class SipCaller:
    """One call's sound."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.offer = make_offer(Addr("127.0.0.1", self.socket.getsockname()[1]), _CAPABILITIES, session_id=1)
        self.arrivals = array("d")
        self.numbers = array("H")
        self.sent = 0
        self._remote = ("127.0.0.1", 0)
        self._ssrc = random.getrandbits(32)

    def answered(self, sdp: bytes, sound: Sequence[bytes]) -> None:
        """Raises SipError."""
        agreed = read_answer(self.offer, parse_sdp(sdp), _CAPABILITIES)
        self._remote = (agreed.remote.host, agreed.remote.port)
        self._sound = sound

    def send(self) -> None:
        payload = self._sound[self.sent % len(self._sound)]
        data = pack_rtp(0, self.sent & 0xFFFF, 160 * self.sent & 0xFFFFFFFF, self._ssrc, payload)
        self.sent += 1
        self.socket.sendto(data, self._remote)

    def read(self) -> None:
        """Everything that has come."""
        while True:
            try:
                data, extra, _, _ = self.socket.recvmsg(_LARGEST, 64)
            except OSError:
                return
            if data[1] & 0x7F:
                # Not PCMU: another call's RTCP reports, whose port is the one above its own.
                continue
            seconds, nanoseconds = _STAMP.unpack_from(extra[0][2])
            self.arrivals.append(seconds + nanoseconds * 1e-9)
            self.numbers.append(int.from_bytes(data[2:4], "big"))


def run_sip_load(order: SipOrder, pipe: Connection) -> None:
    """Entry point of the process: CallsUp out, Window in, SipMeasured out; then the process ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(order, pipe))


async def _run(order: SipOrder, pipe: Connection) -> None:
    load = _Load(order)
    await load.place_all()
    pipe.send(CallsUp(len(load.talking), tuple(load.failures)))
    window: Window = await asyncio.to_thread(pipe.recv)
    await asyncio.sleep(max(0.0, window.start - time.monotonic()))
    sent = sum(caller.sent for caller in load.talking.values())
    await asyncio.sleep(max(0.0, window.end - time.monotonic()))
    sent = sum(caller.sent for caller in load.talking.values()) - sent
    to_wall = time.time() - time.monotonic()
    measured = measure_sip(
        [(caller.arrivals, caller.numbers) for caller in load.talking.values()],
        [late for when, late in load.lateness if window.start <= when <= window.end],
        (window.start + to_wall, window.end + to_wall),
        sent,
    )
    await load.hang_up()
    pipe.send(measured)


class _Load:
    """All calls of the process, on one timer and one SIP socket."""

    def __init__(self, order: SipOrder) -> None:
        self._order = order
        self._loop = asyncio.get_running_loop()
        self._target = parse_uri(order.target)
        settings = SipSettings.model_validate({"listen": "udp:127.0.0.1:0", "requests_per_second": 1e6})
        self._endpoint = SipEndpoint(settings)
        self._endpoint.on_event = self._take
        self._calling: dict[SipCall, SipCaller] = {}
        self.talking: dict[SipCall, SipCaller] = {}
        self.failures: list[str] = []
        self.lateness: list[tuple[float, float]] = []
        self._settled = asyncio.Event()
        self._slots: list[list[SipCaller]] = [[] for _ in range(SLOTS)]
        self._spread = random.Random(order.seed)
        noise = np.random.default_rng(order.seed)
        self._sound = [noise.integers(0, 256, 160, np.uint8).tobytes() for _ in range(50)]
        self._begin = time.monotonic()
        self._done = 0

    async def place_all(self) -> None:
        await self._endpoint.open()
        self._turn()
        begin = time.monotonic()
        for number in range(self._order.calls):
            await asyncio.sleep(max(0.0, begin + number / self._order.starts_per_second - time.monotonic()))
            caller = SipCaller()
            call = self._endpoint.core.invite(self._target, caller.offer, self._endpoint.now())
            self._calling[call] = caller
            self._endpoint.pump()
        await self._until(lambda: not self._calling, 40.0)

    async def hang_up(self) -> None:
        for call in list(self.talking):
            self._endpoint.core.hangup(call, self._endpoint.now())
            self._endpoint.pump()
            await asyncio.sleep(1 / self._order.starts_per_second)
        await self._until(lambda: not self.talking, _GOODBYE_SECONDS)
        await self._endpoint.close()

    async def _until(self, settled: object, seconds: float) -> None:
        assert callable(settled)
        try:
            async with asyncio.timeout(seconds):
                while not settled():
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            self.failures.append("a call came to no end")

    def _take(self, event: Event) -> None:
        if isinstance(event, Established):
            self._up(event)
        elif isinstance(event, Terminated):
            if self._calling.pop(event.call, None) is not None:
                self.failures.append(f"the gateway answered {event.code} {event.text}".strip())
            caller = self.talking.pop(event.call, None)
            if caller is not None:
                for slot in self._slots:
                    if caller in slot:
                        slot.remove(caller)
                caller.socket.close()
        self._settled.set()

    def _up(self, event: Established) -> None:
        caller = self._calling.pop(event.call)
        try:
            caller.answered(event.sdp or b"", self._sound)
        except SipError as error:
            self.failures.append(str(error))
            return
        self.talking[event.call] = caller
        self._slots[self._spread.randrange(SLOTS)].append(caller)

    def _turn(self) -> None:
        """Send what is due, each millisecond."""
        due = int((time.monotonic() - self._begin) / _STEP)
        while self._done < due:
            self._done += 1
            callers = self._slots[self._done % SLOTS]
            if callers:
                now = time.monotonic()
                self.lateness.append((now, now - self._begin - self._done * _STEP))
                for caller in callers:
                    caller.read()
                    caller.send()
        self._loop.call_later(max(0.0, self._begin + (self._done + 1) * _STEP - time.monotonic()), self._turn)


def measure_sip(
    logs: Sequence[tuple[array[float], array[int]]], lateness: Sequence[float], window: tuple[float, float], sent: int
) -> SipMeasured:
    """Spacing and losses of what came back within the window, seconds of the wall clock."""
    off_beat: list[NDArray[np.float64]] = []
    received = missing = silent = 0
    for arrivals, numbers in logs:
        when, number = np.array(arrivals, np.float64), np.array(numbers, np.int64)
        inside = (when >= window[0]) & (when <= window[1])
        when, number = when[inside], number[inside]
        if len(when) < 2:
            silent += 1
            continue
        steps = np.diff(number) & 0xFFFF
        off_beat.append(np.abs(np.diff(when)[steps == 1] - _PACKET))
        received += len(when)
        missing += int((steps[(steps > 1) & (steps < 0x8000)] - 1).sum())
    everything = np.concatenate(off_beat) if off_beat else np.empty(0)
    return SipMeasured(len(logs), silent, everything, sent, received, missing, np.array(lateness, np.float64))
