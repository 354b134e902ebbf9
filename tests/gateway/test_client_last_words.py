"""What a worker's client still hears of its caller once the call is over."""

from __future__ import annotations

import asyncio

import pytest
from websockets.asyncio.server import ServerConnection

from gateway import worker_client
from gateway.worker_client import RemoteEngine, RemoteSession
from model import wire
from model.wire import AgentFrame
from tests.gateway.client_workers import REQUEST, SOUND, heard, strange_worker

pytestmark = pytest.mark.anyio


LAST = [wire.CallerText(0, 9, "Thanks,"), wire.CallerText(9, 12, "bye.")]


async def last_words(session: RemoteSession) -> list[wire.CallerText]:
    return [text async for text in session.last_words()]


async def test_a_callers_last_words_come_after_the_slot_is_free() -> None:
    freed = asyncio.Event()

    async def finish(connection: ServerConnection) -> None:
        while await connection.recv() != wire.encode(wire.Close()):
            pass
        await connection.send(wire.encode_frame(AgentFrame(0, SOUND)))
        await connection.send(wire.encode(LAST[0]))
        await connection.send(wire.encode(wire.Closed()))
        await freed.wait()
        await connection.send(wire.encode(LAST[1]))

    async with strange_worker(finish, wire.WITH_CLOSED) as url:
        engine = RemoteEngine(url)
        session = await engine.open(REQUEST)
        await session.send(SOUND)
        await session.close()
        assert engine.sessions == 0
        freed.set()
        assert await last_words(session) == LAST
        assert await last_words(session) == []


async def test_a_caller_whose_agent_took_leave_has_last_words_too() -> None:
    async def finish(connection: ServerConnection) -> None:
        messages: list[wire.FromWorker] = [wire.Done(0, "goodbye"), wire.Closed(), *LAST]
        for message in messages:
            await connection.send(wire.encode(message))

    async with strange_worker(finish, wire.WITH_CLOSED) as url:
        session = await RemoteEngine(url).open(REQUEST)
        assert await heard(session, 1) == [wire.Done(0, "goodbye")]
        await session.close()
        assert await last_words(session) == LAST


async def test_a_worker_that_does_not_know_of_last_words_just_closes() -> None:
    async def finish(connection: ServerConnection) -> None:
        await connection.recv()

    async with strange_worker(finish) as url:
        session = await RemoteEngine(url).open(REQUEST)
        await session.close()
        assert await last_words(session) == []


async def test_last_words_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "LAST_WORDS_TIMEOUT", 0.1)
    cut = asyncio.Event()

    async def hang(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(wire.encode(wire.Closed()))
        await connection.wait_closed()
        cut.set()

    async with strange_worker(hang, wire.WITH_CLOSED) as url:
        session = await RemoteEngine(url).open(REQUEST)
        await session.close()
        assert await last_words(session) == []
        await cut.wait()
