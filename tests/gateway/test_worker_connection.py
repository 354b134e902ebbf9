"""How the gateway reaches a worker: one that is not there, never answers, is none, or wants a token or TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway import worker_client
from gateway.worker_client import RemoteEngine, WorkerSilent
from gateway.worker_connection import WorkerUnreachable
from model.echo import EchoEngine, EchoSession
from model.wire import AgentFrame, SessionRequest
from tests.gateway.client_workers import REQUEST, ROOT, SOUND, heard, worker

pytestmark = pytest.mark.anyio

TLS = ROOT / "tests" / "model" / "tls"


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
