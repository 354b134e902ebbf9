"""The slots of a worker: how many sessions there are, whether more are taken, and that each is closed.

Owns the count and the draining. Knows no protocol; an engine's faults, of whatever kind, end one session here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from model import wire
from model.scheduler import all_taken
from model.session import Counts, GatewayStopped, SessionEnded
from model.worker_engine import WorkerSession

log = logging.getLogger(__name__)

ENGINE_OPEN_TIMEOUT = 10.0
"""Seconds the engine has to open a session."""

Opening = Callable[[], Coroutine[None, None, WorkerSession]]


class Slots:
    """A worker's."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.active = 0
        self.counts = Counts()
        self.draining = asyncio.Event()
        self._present = 0
        """Sessions, those among them that have left their slot and still have something to say."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def free(self) -> int:
        """Sessions that may be opened now."""
        return 0 if self.draining.is_set() else self.capacity - self.active

    async def drain(self, timeout: float) -> None:
        """Take no more sessions and tell those there are to go; returns when all are gone, or after `timeout`."""
        self.draining.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._idle.wait()

    @asynccontextmanager
    async def session(
        self, connection: ServerConnection, call_id: str, opening: Opening
    ) -> AsyncIterator[WorkerSession]:
        """A slot with the session that `opening` opens, closed at the end.

        Raises SessionEnded: nothing is free, or the engine failed, before or inside; the log then says why.
        """
        self._check()
        self.active += 1
        self._come()
        try:
            session = await self._opened(connection, opening)
            self.counts.sessions += 1
            try:
                yield session
            finally:
                await session.close()
        except (wire.WireError, ConnectionClosed, SessionEnded, GatewayStopped):
            raise
        except Exception as error:  # the engine's fault, of whatever kind, ends this session only
            self.counts.failed += 1
            log.exception("the session of call %s failed", call_id)
            failed = wire.Error("failed", "the worker could not continue the session; its log says why")
            raise SessionEnded(failed, CloseCode.INTERNAL_ERROR) from error
        finally:
            self.active -= 1
            self._go()

    @contextmanager
    def presence(self) -> Iterator[None]:
        """Somebody is here, with a slot or without: `drain` waits for them."""
        self._come()
        try:
            yield
        finally:
            self._go()

    def _come(self) -> None:
        self._present += 1
        self._idle.clear()

    def _go(self) -> None:
        self._present -= 1
        if not self._present:
            self._idle.set()

    async def _opened(self, connection: ServerConnection, opening: Opening) -> WorkerSession:
        """What the engine opens; a call for which it has no time is refused like one for which it has no slot."""
        try:
            return await _while_connected(connection, opening(), self.draining)
        except SessionEnded as ended:
            self.counts.refused += ended.error.code == "full"
            raise

    def _check(self) -> None:
        if self.draining.is_set():
            raise _stopping()
        if self.active >= self.capacity:
            self.counts.refused += 1
            raise SessionEnded(wire.Error("full", all_taken(self.capacity)), CloseCode.TRY_AGAIN_LATER)


async def _while_connected(
    connection: ServerConnection, opening: Coroutine[None, None, WorkerSession], draining: asyncio.Event
) -> WorkerSession:
    """What the engine opens. For a peer that left meanwhile nothing is opened: its slot is free at once.

    Nor for one that waits when the worker is to stop: another worker may open its session sooner.
    """
    task = asyncio.create_task(opening)
    gone, stopping = asyncio.create_task(connection.wait_closed()), asyncio.create_task(draining.wait())
    tasks = {task, gone, stopping}
    try:
        await asyncio.wait(tasks, timeout=ENGINE_OPEN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)
    if not task.cancelled():
        return task.result()
    if not gone.cancelled():
        raise connection.protocol.close_exc
    if not stopping.cancelled():
        raise _stopping()
    raise TimeoutError(f"the engine opened no session within {ENGINE_OPEN_TIMEOUT:.0f} s")


def _stopping() -> SessionEnded:
    return SessionEnded(wire.Error("draining", wire.STOPPING), CloseCode.GOING_AWAY)
