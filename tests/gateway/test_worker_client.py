"""The gateway's client over real sockets: a frame's way, and every way to lose a worker."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.typing import Subprotocol

from gateway import worker_connection
from gateway.engine import EngineFull, EngineLost
from gateway.worker_client import RemoteEngine, RemoteSession
from model import wire
from model.echo import EchoEngine, EchoSession
from model.wire import AgentFrame, AgentText, SessionRequest
from tests.gateway.client_workers import REQUEST, SOUND, heard, strange_worker, to_the_end, worker, worker_process

pytestmark = pytest.mark.anyio


async def test_frames_go_out_and_come_back_in_order() -> None:
    async with worker(name="w7") as server:
        engine = RemoteEngine(server.url)
        session = await engine.open(REQUEST)
        assert (session.engine, session.worker, engine.sessions) == ("echo", "w7", 1)
        for _ in range(40):
            await session.send(SOUND)
        assert await heard(session, 40) == [AgentFrame(i, SOUND) for i in range(40)]
        await session.close()
        assert (server.slots.active, engine.sessions) == (0, 0)


async def test_what_the_agent_shall_say_is_passed_on() -> None:
    async with worker() as server:
        session = await RemoteEngine(server.url).open(REQUEST)
        await session.play("disclosure")
        await session.say(" päivää")
        assert await heard(session, 1) == [AgentText(0, " päivää")]
        await session.close()


async def test_closing_ends_the_outputs_and_everything_after_is_harmless() -> None:
    async with worker() as server:
        session = await RemoteEngine(server.url).open(REQUEST)
        reader = asyncio.create_task(to_the_end(session))
        await session.close()
        await session.close()
        assert await reader == []
        await session.send(SOUND)
        await session.say("hello")
        assert await to_the_end(session) == []


async def test_a_close_that_is_cancelled_in_the_moment_it_succeeds_is_cancelled() -> None:
    async with worker() as server:
        session = await RemoteEngine(server.url).open(REQUEST)
        closing: list[asyncio.Task[None]] = []
        session._connection.freed.add_done_callback(lambda _: closing[0].cancel())
        closing.append(asyncio.create_task(session.close()))
        await asyncio.wait(closing)
        assert closing[0].cancelled()
        assert server.slots.active == 0


async def test_a_full_worker_is_full_not_lost() -> None:
    async with worker(capacity=1) as server:
        engine = RemoteEngine(server.url)
        first = await engine.open(REQUEST)
        with pytest.raises(EngineFull, match="the only slot of this worker is taken"):
            await engine.open(REQUEST)
        assert engine.sessions == 1
        await first.close()
        await (await engine.open(REQUEST)).close()


async def test_a_killed_worker_is_lost_to_reader_and_sender() -> None:
    async with worker_process() as (url, process):
        engine = RemoteEngine(url)
        session = await engine.open(REQUEST)
        await session.send(SOUND)
        assert await heard(session, 1) == [AgentFrame(0, SOUND)]
        process.kill()
        with pytest.raises(EngineLost, match="broke the connection"):
            await to_the_end(session)
        with pytest.raises(EngineLost, match="broke the connection"):
            await session.send(SOUND)
        await session.close()
        assert engine.sessions == 0


async def test_a_frozen_worker_never_blocks_the_call_and_is_lost_in_the_end() -> None:
    async with worker_process() as (url, process):
        session = await RemoteEngine(url).open(REQUEST)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(EngineLost, match="does not read"):
            await send_for_ever(session)
        with pytest.raises(EngineLost, match="does not read"):
            await to_the_end(session)
        await session.close()


async def send_for_ever(session: RemoteSession) -> None:
    while True:
        await session.send(SOUND)


async def test_a_worker_that_stops_serving() -> None:
    async with worker() as server:
        session = await RemoteEngine(server.url).open(REQUEST)
        await server.stop()
        with pytest.raises(EngineLost, match=r"closed the session \(code 1001\)"):
            await to_the_end(session)


async def test_a_fault_in_the_worker_is_told_in_its_words() -> None:
    class Breaking(EchoSession):
        def say(self, text: str) -> None:
            raise ZeroDivisionError

    class Engine(EchoEngine):
        async def open(self, request: SessionRequest) -> EchoSession:
            return Breaking()

    async with worker(Engine()) as server:
        session = await RemoteEngine(server.url).open(REQUEST)
        await session.say("hello")
        with pytest.raises(EngineLost, match="could not continue the session"):
            await to_the_end(session)


async def test_after_done_the_end_of_the_connection_is_no_loss() -> None:
    async def finish(connection: ServerConnection) -> None:
        await connection.send(wire.encode(wire.Done(0, "transfer", "desk")))

    async with strange_worker(finish) as url:
        session = await RemoteEngine(url).open(REQUEST)
        assert await to_the_end(session) == [wire.Done(0, "transfer", "desk")]
        await session.send(SOUND)
        await session.close()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x07\x00\x00\x00\x00", "unknown binary kind 7"),
        (b"", "at least 5 bytes"),
        ('{"type": "say", "text": "a"}', "unknown message type"),
        (wire.encode(wire.Ready("echo")), "ready twice"),
    ],
)
async def test_a_worker_that_breaks_the_protocol(message: str | bytes, words: str) -> None:
    async def babble(connection: ServerConnection) -> None:
        await connection.send(message)
        await connection.wait_closed()

    async with strange_worker(babble) as url:
        session = await RemoteEngine(url).open(REQUEST)
        with pytest.raises(EngineLost, match=words):
            await to_the_end(session)
        await session.close()


async def test_bytes_that_are_no_websocket_frame() -> None:
    async def babble(connection: ServerConnection) -> None:
        connection.transport.write(b"\xff" * 64)
        await connection.wait_closed()

    async with strange_worker(babble) as url:
        session = await RemoteEngine(url).open(REQUEST)
        with pytest.raises(EngineLost, match="broke the connection"):
            await to_the_end(session)


async def test_fragments_and_pings_on_the_way_are_handled() -> None:
    frame = wire.encode_frame(AgentFrame(0, SOUND))
    ponged = asyncio.Event()

    async def fragment(connection: ServerConnection) -> None:
        await (await connection.ping())
        ponged.set()
        await connection.send([frame[:3], frame[3:2000], frame[2000:]])
        text = wire.encode(wire.CallerText(0, 3, "päivää"))
        assert isinstance(text, str)
        await connection.send([text[:20], text[20:]])
        await connection.wait_closed()

    async with strange_worker(fragment) as url:
        session = await RemoteEngine(url).open(REQUEST)
        assert await heard(session, 2) == [AgentFrame(0, SOUND), wire.CallerText(0, 3, "päivää")]
        assert ponged.is_set()
        await session.close()


async def test_a_call_that_does_not_read_does_not_hoard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_connection, "MAX_UNREAD", 5)
    dropped = asyncio.Event()

    async def flood(connection: ServerConnection) -> None:
        for index in range(6):
            await connection.send(wire.encode_frame(AgentFrame(index, SOUND)))
        await connection.wait_closed()
        dropped.set()

    async with strange_worker(flood) as url:
        session = await RemoteEngine(url).open(REQUEST)
        await dropped.wait()
        assert len(session._connection.inbox) <= 5
        with pytest.raises(EngineLost, match="does not read"):
            await to_the_end(session)


@pytest.mark.parametrize(
    ("subprotocol", "told"), [(wire.WITH_LEVELS, (30, 40)), (wire.WITH_CLOSED, ()), (wire.SUBPROTOCOL, ())]
)
async def test_only_a_worker_that_knows_the_field_is_told_how_loud_the_agent_was(
    subprotocol: str, told: tuple[int, ...]
) -> None:
    resume = wire.Resume(frames=2, caller_frames=2, agent_levels=(30, 40))
    history = wire.History(bytes(2 * wire.TOKENS_BYTES), bytes(2 * wire.FRAME_BYTES))
    opened: list[str | bytes] = []

    async def accept(connection: ServerConnection) -> None:
        opened.append(await connection.recv())
        await connection.send(wire.encode(wire.Ready("tokens", "strange", resumable=True)))

    offered = [Subprotocol(subprotocol)]
    async with serve_websockets(accept, "127.0.0.1", 0, subprotocols=offered, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        engine = RemoteEngine(f"ws://127.0.0.1:{port}")
        session = await engine.resume(lambda: (SessionRequest("c1", resume=resume), history))
        await session.close()
    assert wire.decode_open(opened[0]).resume == replace(resume, agent_levels=told)
    assert ('"agent_levels"' in str(opened[0])) == bool(told)
