"""The process that makes the calls of a measurement, apart from the gateway and from the one that reports.

Owns the schedule: when calls are placed and when each sends its next 20 ms. It talks to its parent
over a pipe: it says when all calls are up, is told the window to measure, and answers with what it
saw. Knows nothing of how the gateway was started.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import httpx
import uvloop
from websockets.exceptions import InvalidURI

from gateway.bench.line import CallFailed, CallIds, Line
from gateway.bench.measure import LineLog, measure
from gateway.phone.twiml import TwimlInvalid, parse
from gateway.twilio.signature import HEADER, sign

SLOTS = 20
"""The 20 ms of a frame, in steps of 1 ms: calls are spread over them as they come."""
_SLOT_SECONDS = 0.001
_PLACING_AT_ONCE = 8
_TAIL_SECONDS = 1.5
"""Calls go on so long after the window, so that the last frames of it can come back."""


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What a load process is to do."""

    url: str
    """The gateway's carrier address, http://host:port."""
    auth_token: str
    """Twilio's auth token, to sign as Twilio does; empty: unsigned."""
    number: str
    calls: int
    starts_per_second: float
    seed: int


@dataclass(frozen=True, slots=True)
class CallsUp:
    """All calls of the order are up, or those that could be."""

    up: int
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """The time to measure, seconds of the monotonic clock."""

    start: float
    end: float


def run_load(order: LoadOrder, pipe: Connection) -> None:
    """Entry point of the process: CallsUp out, Window in, Measured out; then the process ends."""
    # What measures must not stand still itself; it lives for seconds and needs no garbage collected.
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(order, pipe))


async def _run(order: LoadOrder, pipe: Connection) -> None:
    schedule = Schedule(random.Random(order.seed))
    lines, failures = await _place_all(order, schedule)
    pipe.send(CallsUp(len(lines), tuple(failures)))
    window: Window = await asyncio.to_thread(pipe.recv)
    await asyncio.sleep(max(0.0, window.end + _TAIL_SECONDS - time.monotonic()))
    schedule.stop()
    logs = [LineLog(line.sent_at, line.received) for line in lines]
    await _hang_up(lines, order.starts_per_second)
    pipe.send(measure(logs, schedule.lateness, window.start, window.end))


class Schedule:
    """Sends each call's next frame every 20 ms, from one timer for all calls."""

    def __init__(self, spread: random.Random) -> None:
        self._loop = asyncio.get_running_loop()
        self._spread = spread
        self._slots: list[list[Line]] = [[] for _ in range(SLOTS)]
        self._begin = time.monotonic()
        self._done = 0
        self._timer = self._loop.call_later(_SLOT_SECONDS, self._turn)
        self.lateness: list[tuple[float, float]] = []
        """(when, how late) of each step that had something to send, in seconds."""

    def add(self, line: Line) -> None:
        self._slots[self._spread.randrange(SLOTS)].append(line)

    def stop(self) -> None:
        self._timer.cancel()

    def _turn(self) -> None:
        now = time.monotonic()
        due = int((now - self._begin) / _SLOT_SECONDS)
        while self._done < due:
            self._done += 1
            lines = self._slots[self._done % SLOTS]
            if lines:
                now = time.monotonic()
                planned = self._begin + self._done * _SLOT_SECONDS
                self.lateness.append((now, now - planned))
                for line in lines:
                    line.send_media(planned)
        self._timer = self._loop.call_later(
            max(0.0, self._begin + (self._done + 1) * _SLOT_SECONDS - time.monotonic()), self._turn
        )


async def _place_all(order: LoadOrder, schedule: Schedule) -> tuple[list[Line], list[str]]:
    """Start the calls at random, as a line's callers do; a call speaks as soon as it is up.

    Evenly would not do: 25 a second all fall on the same two points of an 80 ms frame.
    """
    arrivals = random.Random(order.seed)
    lines: list[Line] = []
    failures: list[str] = []
    placing = asyncio.Semaphore(_PLACING_AT_ONCE)

    async def place(client: httpx.AsyncClient, number: int) -> None:
        async with placing:
            try:
                line = await place_call(client, order, number)
            except (CallFailed, TwimlInvalid, InvalidURI, httpx.HTTPError, OSError, TimeoutError) as error:
                failures.append(str(error) or type(error).__name__)
                return
            lines.append(line)
            schedule.add(line)

    async with httpx.AsyncClient(timeout=10) as client, asyncio.TaskGroup() as tasks:
        due = time.monotonic()
        for number in range(order.calls):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += arrivals.expovariate(order.starts_per_second)
            tasks.create_task(place(client, number))
    return lines, failures


async def place_call(client: httpx.AsyncClient, order: LoadOrder, number: int) -> Line:
    """Ask the gateway what to do with a call, as Twilio does, and open the stream it names.

    Raises CallFailed, TwimlInvalid, httpx.HTTPError, OSError or TimeoutError.
    """
    name = f"{order.seed:08x}{number:08x}{time.monotonic_ns():016x}"
    ids = CallIds(call_sid=f"CA{name}", stream_sid=f"MZ{name}", account_sid=f"AC{0:032x}")
    form = {
        "CallSid": ids.call_sid,
        "AccountSid": ids.account_sid,
        "From": f"+1555{number:07d}",
        "To": order.number,
        "CallStatus": "ringing",
        "Direction": "inbound",
        "ApiVersion": "2010-04-01",
    }
    url = order.url.rstrip("/") + "/twilio/voice"
    answer = await client.post(url, data=form, headers=_signature(order.auth_token, url, form))
    if answer.status_code != 200:
        raise CallFailed(f"POST /twilio/voice answered {answer.status_code}: {answer.text[:200]}")
    stream = next((verb.stream for verb in parse(answer.content) if verb.stream), None)
    if stream is None:
        raise CallFailed(f"the gateway did not connect the call to a stream: {answer.text[:200]}")
    ids.parameters = dict(stream.parameters)
    return await open_line(stream.url, _signature(order.auth_token, stream.url, {}), ids)


async def open_line(url: str, headers: dict[str, str], ids: CallIds) -> Line:
    """Connect to ws://host:port/path and say `start`. Raises CallFailed, OSError or TimeoutError."""
    line = Line(url, headers, ids)
    async with asyncio.timeout(10):
        await asyncio.get_running_loop().create_connection(lambda: line, line.host, line.port)
        await line.opened
    return line


def _signature(auth_token: str, url: str, form: dict[str, str]) -> dict[str, str]:
    return {HEADER: sign(auth_token, url, form.items())} if auth_token else {}


async def _hang_up(lines: Sequence[Line], per_second: float) -> None:
    """End the calls as evenly as they began."""
    async with asyncio.TaskGroup() as tasks:
        for line in lines:
            tasks.create_task(line.stop())
            await asyncio.sleep(1 / per_second)
