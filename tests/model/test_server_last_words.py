"""What a worker tells a gateway of its caller's last words, once the slot is free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.typing import Subprotocol

from model import wire
from model.echo import EchoEngine, EchoSession
from model.wire import CallerText, Output, SessionRequest
from tests.model.worker_connections import closed, connected, opened, serving, told

pytestmark = pytest.mark.anyio


class LastingSession(EchoSession):
    """Has something left to say when it is closed, and says it when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()
        self.finishes, self.closed = 0, asyncio.Event()

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            yield output
            if isinstance(output, wire.Done):
                return

    def finish(self) -> AsyncIterator[CallerText]:
        self.finishes += 1
        return self._last_words()

    async def _last_words(self) -> AsyncIterator[CallerText]:
        assert self.closed.is_set()
        await self.told.wait()
        yield LAST_WORDS

    async def close(self) -> None:
        await super().close()
        self.closed.set()


class LastingEngine(EchoEngine):
    def __init__(self, *says: Output) -> None:
        self.says = says
        self.session = LastingSession()

    async def open(self, request: SessionRequest) -> EchoSession:
        self.session = LastingSession()
        self.session._pending.extend(self.says)
        return self.session


LAST_WORDS = CallerText(0, 12, "Thanks, bye.")
WAITING = [Subprotocol(one) for one in wire.SUBPROTOCOLS]


@pytest.mark.parametrize("by_the_agent", [False, True])
async def test_the_slot_is_free_before_a_callers_last_words_are_told(by_the_agent: bool) -> None:
    engine = LastingEngine(*[wire.Done(0, "goodbye")] * by_the_agent)
    async with serving(engine, capacity=1) as server, connected(server, subprotocols=WAITING) as connection:
        await opened(connection)
        if by_the_agent:
            assert await told(connection) == wire.Done(0, "goodbye")
        else:
            await connection.send(wire.encode(wire.Close()))
        assert await told(connection) == wire.Closed()
        ending = engine.session
        assert ending.closed.is_set()
        async with connected(server, subprotocols=WAITING) as other:
            assert isinstance(await opened(other), wire.Ready)
            ending.told.set()
            assert await told(connection) == LAST_WORDS
            assert await closed(connection) == 1000


async def test_a_gateway_that_does_not_know_of_last_words_is_closed_at_once() -> None:
    engine = LastingEngine()
    offered = [Subprotocol(wire.WITH_LATE), Subprotocol(wire.SUBPROTOCOL)]
    async with serving(engine) as server, connected(server, subprotocols=offered) as connection:
        await opened(connection)
        await connection.send(wire.encode(wire.Close()))
        assert await closed(connection) == 1000
        assert engine.session.closed.is_set()
        assert engine.session.finishes == 0


async def test_a_session_that_goes_on_elsewhere_has_no_last_words() -> None:
    engine = LastingEngine()
    async with serving(engine) as server:
        async with connected(server, subprotocols=WAITING) as connection:
            await opened(connection)
            connection.transport.abort()
            await engine.session.closed.wait()
            assert engine.session.finishes == 0
        async with connected(server, subprotocols=WAITING) as connection:
            await opened(connection)
            await server.drain(5)
            assert isinstance(await told(connection), wire.Error)
            assert await closed(connection) == 1001
            assert engine.session.finishes == 0


async def test_a_worker_that_is_stopped_waits_for_last_words() -> None:
    engine = LastingEngine()
    async with serving(engine) as server, connected(server, subprotocols=WAITING) as connection:
        await opened(connection)
        await connection.send(wire.encode(wire.Close()))
        assert await told(connection) == wire.Closed()
        draining = asyncio.create_task(server.drain(20))
        await asyncio.sleep(0)
        assert server.slots.active == 0
        assert not draining.done()
        engine.session.told.set()
        assert await told(connection) == LAST_WORDS
        await draining
        assert await closed(connection) == 1000


async def test_a_gateway_that_leaves_before_the_last_words_harms_nobody() -> None:
    engine = LastingEngine()
    async with serving(engine) as server:
        async with connected(server, subprotocols=WAITING) as connection:
            await opened(connection)
            await connection.send(wire.encode(wire.Close()))
            assert await told(connection) == wire.Closed()
            connection.transport.abort()
        engine.session.told.set()
        await server.drain(5)
        assert not server.slots._present
