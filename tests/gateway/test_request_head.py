"""Connections that do not say what they want, over real sockets behind uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket

from gateway import request_head
from gateway.request_head import prompt_http
from gateway.twilio.socket import CarrierSocket
from tests.gateway.twilio.serving import TIMEOUT

pytestmark = pytest.mark.anyio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

app = FastAPI()


@app.get("/")
async def hello() -> str:
    return "hello"


@app.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive_text()
    await websocket.close()


@asynccontextmanager
async def listening(most_waiting: int = 10) -> AsyncIterator[int]:
    http = prompt_http(most_waiting)
    config = uvicorn.Config(app, "127.0.0.1", 0, http=http, ws=CarrierSocket, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        async with asyncio.timeout(TIMEOUT):
            yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()
        assert http.waiting == {}


async def say(port: int, text: bytes) -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    await writer.drain()
    return reader, writer


async def cut_off(streams: Streams) -> bool:
    """Whether the other end has let go without an answer."""
    reader, writer = streams
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


@pytest.mark.parametrize("half", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_half_a_head_is_let_go_in_time(monkeypatch: pytest.MonkeyPatch, half: bytes) -> None:
    monkeypatch.setattr(request_head, "HEAD_SECONDS", 0.05)
    async with listening() as port:
        assert await cut_off(await say(port, half))


async def test_half_a_second_head_is_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_head, "HEAD_SECONDS", 0.05)
    async with listening() as port:
        reader, writer = await say(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b'"hello"')).startswith(b"HTTP/1.1 200 ")
        writer.write(b"GET / HT")
        assert await cut_off((reader, writer))


async def test_of_too_many_that_wait_the_oldest_goes() -> None:
    async with listening(most_waiting=3) as port:
        waiting = [await say(port, b"GET / HT") for _ in range(5)]
        assert [await cut_off(streams) for streams in waiting[:2]] == [True, True]
        for reader, writer in waiting[2:]:
            writer.write(b"TP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).endswith(b'"hello"')
            writer.close()


async def test_a_websocket_is_not_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_head, "HEAD_SECONDS", 0.05)
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + key
    async with listening() as port:
        reader, writer = await say(port, upgrade)
        await reader.readuntil(b"\r\n\r\n")
        # Those who came later are let go; this one is not.
        assert await cut_off(await say(port, b"G"))
        writer.write(b"\x81\x80\x00\x00\x00\x00")
        assert await reader.readexactly(1) == b"\x88"
        writer.close()
