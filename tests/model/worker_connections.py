"""A worker's server in the tests, and a gateway's connections to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from model import wire
from model.echo import EchoEngine, EchoSession
from model.server import WorkerServer
from model.wire import CallerFrame, SessionRequest
from model.worker_engine import WorkerEngine

SOUND = bytes(range(256)) * 15


@asynccontextmanager
async def serving(
    engine: WorkerEngine | None = None, listen: str = "127.0.0.1:0", **options: Any
) -> AsyncIterator[WorkerServer]:
    server = WorkerServer(engine or EchoEngine(), listen, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(server: WorkerServer, hang: float = 10, **options: Any) -> AsyncIterator[ClientConnection]:
    options = {"subprotocols": [Subprotocol(wire.SUBPROTOCOL)], **options}
    async with asyncio.timeout(hang):
        async with connect(server.url, compression=None, **options) as connection:
            yield connection


async def opened(connection: ClientConnection) -> wire.FromWorker:
    await connection.send(wire.encode_open(SessionRequest("c1")))
    return await told(connection)


async def told(connection: ClientConnection) -> wire.FromWorker:
    return wire.decode_from_worker(await connection.recv())


async def closed(connection: ClientConnection) -> int | None:
    """The code with which the worker closes."""
    await connection.wait_closed()
    return connection.close_code


async def free_again(server: WorkerServer) -> None:
    """Opens succeed once the slot is free; each refusal takes the server a turn."""
    async with asyncio.timeout(5):
        while True:
            async with connected(server) as connection:
                if isinstance(await opened(connection), wire.Ready):
                    return


class MuteSession(EchoSession):
    def push(self, frame: CallerFrame) -> None:
        """Never answered."""


class MuteEngine(EchoEngine):
    async def open(self, request: SessionRequest) -> EchoSession:
        return MuteSession()
