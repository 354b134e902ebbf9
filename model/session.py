"""One session of a worker's server, both ways, until one of them ends it.

Owns the order of a session's messages and what ends it. Knows no listener and no slots.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from model import wire
from model.wire import AgentFrame, CallerFrame, CallerText, Output, ToWorker
from model.worker_engine import WorkerSession

MAX_BEHIND = 125
"""Caller frames (80 ms each) a session may have unanswered, or answered but unread: 10 s. It bounds
what a session holds in memory, whether the engine is slow or the gateway does not read."""
LAST_ANSWERS = 0.2
"""Seconds a session that has to go may take to answer the caller frames it was given."""


_ALL_ADDED = (wire.Late, wire.GaveWay)
_IGNORED: dict[str, tuple[type[Output], ...]] = {
    wire.WITH_LEVELS: (),
    wire.WITH_CLOSED: (),
    wire.WITH_LATE: (wire.GaveWay,),
}
"""What a gateway is not told that speaks this subprotocol; of any other all that was added to the first."""


class SessionEnded(Exception):
    """The session ends with this error and close code."""

    def __init__(self, error: wire.Error, close_code: CloseCode) -> None:
        super().__init__(error.message)
        self.error = error
        self.close_code = close_code


class GatewayStopped(Exception):
    """The gateway does not read what it is sent."""


class _Finished(Exception):
    """The session has said everything."""


class Peer(Protocol):
    """Who has the session, in whatever protocol: a gateway, or a client of Moshi's."""

    async def receive(self) -> ToWorker:
        """What it says next. Raises ConnectionClosed, and WireError at its faults."""

    async def send(self, output: Output) -> None:
        """Tell it. Raises ConnectionClosed."""

    @property
    def reads(self) -> bool:
        """Nothing of what it was sent waits in this process."""


class Gateway:
    """A peer that speaks `model.wire`."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._ignored = _IGNORED.get(connection.subprotocol or "", _ALL_ADDED)
        self.waits = connection.subprotocol in (wire.WITH_LEVELS, wire.WITH_CLOSED)
        """It wants to know what the caller was still saying at the end."""

    async def receive(self) -> ToWorker:
        return wire.decode_to_worker(await self._connection.recv())

    async def send(self, output: Output) -> None:
        if not isinstance(output, self._ignored):
            await self._connection.send(wire.encode(output))

    async def send_last(self, words: AsyncIterator[CallerText]) -> None:
        """The slot is free, and this is what the caller was still saying. Raises ConnectionClosed."""
        await self._connection.send(wire.encode(wire.Closed()))
        async for text in words:
            await self._connection.send(wire.encode(text))

    @property
    def reads(self) -> bool:
        return not self._connection.transport.get_write_buffer_size()


@dataclass(slots=True)
class Counts:
    """What the worker has done since it started."""

    sessions: int = 0
    refused: int = 0
    failed: int = 0
    frames: int = 0
    resumed: int = 0
    """Of the sessions, those that another worker began."""


def _even() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class _Progress:
    expected: int
    """Index of the caller frame that is due."""
    answered: int
    """Index of the agent frame that is due."""
    even: asyncio.Event = field(default_factory=_even)
    """Set while no caller frame waits for its answer."""


async def converse(peer: Peer, session: WorkerSession, counts: Counts, draining: asyncio.Event, first: int = 0) -> bool:
    """Both directions until either ends, from caller frame `first` on.

    Returns whether one of them said that the call is over; else the peer is gone, and the call perhaps elsewhere. When
    `draining` is set the session goes, as soon as its caller has been answered. Raises WireError at the peer's faults,
    SessionEnded, GatewayStopped, and whatever the engine's session raises.
    """
    progress = _Progress(first, first)
    try:
        async with asyncio.TaskGroup() as tasks:
            others = (
                tasks.create_task(_send_outputs(peer, session, progress)),
                tasks.create_task(_go_when(draining, progress)),
            )
            closed = await _receive(peer, session, progress, counts)
            for task in others:
                task.cancel()
            return closed
    except ExceptionGroup as group:
        if not isinstance(group.exceptions[0], _Finished):
            raise group.exceptions[0] from None
    return True


async def _go_when(draining: asyncio.Event, progress: _Progress) -> None:
    await draining.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_ANSWERS):
            await progress.even.wait()
    raise SessionEnded(wire.Error("draining", wire.STOPPING), CloseCode.GOING_AWAY)


async def _receive(peer: Peer, session: WorkerSession, progress: _Progress, counts: Counts) -> bool:
    """Hand the peer's messages to the session until it closes (True) or is gone. Raises WireError at its faults."""
    while True:
        try:
            message = await peer.receive()
        except ConnectionClosed:
            return False
        if isinstance(message, CallerFrame):
            if message.index != progress.expected:
                raise wire.WireError(f"caller frame {message.index} came where {progress.expected} was due")
            progress.expected += 1
            progress.even.clear()
            if progress.expected - progress.answered > MAX_BEHIND:
                _refuse_backlog(peer)
            counts.frames += 1
            session.push(message)
        elif isinstance(message, wire.Close):
            return True
        elif isinstance(message, wire.Say):
            session.say(message.text)
        else:
            session.play(message.clip)


def _refuse_backlog(peer: Peer) -> None:
    if not peer.reads:
        raise GatewayStopped
    error = wire.Error("failed", f"{MAX_BEHIND} caller frames wait for an answer; send one every 80 ms")
    raise SessionEnded(error, CloseCode.TRY_AGAIN_LATER)


async def _send_outputs(peer: Peer, session: WorkerSession, progress: _Progress) -> None:
    """Send what the session says as it comes. Raises _Finished when it has said everything."""
    finished = False
    try:
        async for output in session.outputs():
            await peer.send(output)
            if isinstance(output, AgentFrame):
                progress.answered += 1
                if progress.answered == progress.expected:
                    progress.even.set()
            elif isinstance(output, wire.Done):
                finished = True
    except ConnectionClosed:
        return
    if not finished:
        raise RuntimeError("the engine ended a session without saying why")
    raise _Finished
