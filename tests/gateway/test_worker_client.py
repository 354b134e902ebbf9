"""The gateway's client over real sockets: a frame's way, and every way to lose a worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.typing import Subprotocol

from gateway import worker_client, worker_connection
from gateway.engine import EngineFull, EngineLost
from gateway.worker_client import RemoteEngine, RemoteSession, WorkerSilent
from gateway.worker_connection import WorkerUnreachable
from model import wire
from model.echo import EchoEngine, EchoSession
from model.server import WorkerServer
from model.wire import AgentFrame, AgentText, Output, SessionRequest
from model.worker_engine import WorkerEngine

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
TLS = ROOT / "tests" / "model" / "tls"
SOUND = bytes(range(256)) * 15
REQUEST = SessionRequest("c1", prompt="You work for a bank. " * 200)


@asynccontextmanager
async def worker(engine: WorkerEngine | None = None, **options: Any) -> AsyncIterator[WorkerServer]:
    server = WorkerServer(engine or EchoEngine(), "127.0.0.1:0", **options)
    await server.start()
    try:
        async with asyncio.timeout(20):
            yield server
    finally:
        await server.stop()


@asynccontextmanager
async def strange_worker(
    handler: Callable[[ServerConnection], Awaitable[None]], subprotocol: str = wire.SUBPROTOCOL
) -> AsyncIterator[str]:
    """A worker that accepts every session, then does what `handler` does."""

    async def accept(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(wire.encode(wire.Ready("echo", "strange")))
        await handler(connection)

    async with serve_websockets(
        accept, "127.0.0.1", 0, subprotocols=[Subprotocol(subprotocol)], compression=None
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with asyncio.timeout(20):
            yield f"ws://127.0.0.1:{port}"


@asynccontextmanager
async def worker_process() -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.echo_worker", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            yield json.loads(await process.stdout.readline())["listening"], process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def heard(session: RemoteSession, count: int) -> list[Output]:
    stream = session.outputs()
    return [await anext(stream) for _ in range(count)]


async def to_the_end(session: RemoteSession) -> list[Output]:
    return [output async for output in session.outputs()]


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


async def test_a_worker_that_is_not_there() -> None:
    async with worker() as server:
        url = server.url
    engine = RemoteEngine(url)
    with pytest.raises(WorkerUnreachable, match="cannot be reached"):
        await engine.open(REQUEST)
    assert engine.sessions == 0


@asynccontextmanager
async def silent_port() -> AsyncIterator[str]:
    """Accepts connections and never answers."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_worker_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "CONNECT_TIMEOUT", 0.1)
    async with silent_port() as url:
        engine = RemoteEngine(url)
        with pytest.raises(WorkerSilent, match="did not answer within"):
            await engine.open(REQUEST)
        assert engine.sessions == 0


async def test_a_call_that_ends_while_its_session_opens() -> None:
    async with silent_port() as url:
        engine = RemoteEngine(url)
        opening = asyncio.create_task(engine.open(REQUEST))
        await asyncio.wait([opening], timeout=0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert engine.sessions == 0


async def test_a_worker_that_never_says_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(EchoEngine):
        async def open(self, request: SessionRequest) -> EchoSession:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    monkeypatch.setattr(worker_client, "READY_TIMEOUT", 0.1)
    monkeypatch.setattr("model.slots.ENGINE_OPEN_TIMEOUT", 0.5)
    async with worker(Stuck()) as server:
        with pytest.raises(WorkerSilent, match="opened no session within"):
            await RemoteEngine(server.url).open(REQUEST)


@asynccontextmanager
async def http(status: str) -> AsyncIterator[str]:
    """Something that answers any request with this status; its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nhi".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_something_else_on_the_port() -> None:
    async with http("200 OK") as url:
        with pytest.raises(WorkerUnreachable, match=r"does not speak callplex\.v1"):
            await RemoteEngine(url).open(REQUEST)


async def test_a_worker_that_is_being_stopped_takes_no_connections() -> None:
    async with http("503 Service Unavailable") as url:
        with pytest.raises(WorkerUnreachable, match="takes no connections now"):
            await RemoteEngine(url).open(REQUEST)


async def test_the_token() -> None:
    async with worker(token="secret") as server:
        with pytest.raises(WorkerUnreachable, match="set the same CALLPLEX_WORKER_TOKEN"):
            await RemoteEngine(server.url, "guess").open(REQUEST)
        session = await RemoteEngine(server.url, "secret").open(REQUEST)
        await session.close()


async def test_tls_is_checked() -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    async with worker(tls=tls) as server:
        with pytest.raises(WorkerUnreachable, match="certificate is not trusted"):
            await RemoteEngine(server.url).open(REQUEST)
        trust = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
        session = await RemoteEngine(server.url, tls=trust).open(REQUEST)
        await session.send(SOUND)
        assert await heard(session, 1) == [AgentFrame(0, SOUND)]
        await session.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:8090", "is not a worker's URL"),
        ("127.0.0.1:8090", "is not a worker's URL"),
        ("ws://:8090", "is not a worker's URL"),
        ("ws://host:eighty", "is not a worker's URL"),
        ("ws://worker.example:8090", "unencrypted; use wss://"),
    ],
)
def test_urls_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RemoteEngine(url, "secret")


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
