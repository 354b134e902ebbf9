"""Workers for the gateway's client: one that echoes, one that does what it likes, one in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.typing import Subprotocol

from gateway.worker_client import RemoteSession
from model import wire
from model.echo import EchoEngine
from model.server import WorkerServer
from model.wire import Output, SessionRequest
from model.worker_engine import WorkerEngine

ROOT = Path(__file__).parents[2]
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
