"""A real HTTP server for webhooks, and what tests need around an outbox."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.records.database import Database
from gateway.records.tables import deliveries
from gateway.settings import Settings
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.events import Event
from gateway.webhooks.outbox import Outbox

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()


@dataclass
class Request:
    """What came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, Mapping[str, str], bytes]
"""Status, headers, body."""


@dataclass
class Receiver:
    """Answers with the given statuses in turn, then with 204; or as `answer` says."""

    statuses: list[int] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: int = 0
    """So many requests get no answer at all."""
    answer: Callable[[Request], Reply] | None = None
    raw: bytes = b""
    """Sent instead of any answer."""
    stream: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    """Writes the answer, if it is to come in its own time."""
    got: list[Request] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    port: int = 0
    scheme: str = "http"
    connections: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook?token=private"

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.got]

    @asynccontextmanager
    async def listening(self, port: int = 0, context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        self.scheme = "https" if context else "http"
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        try:
            yield self
        finally:
            server.close()
            await asyncio.sleep(0)  # A connection that was just accepted gets its task.
            for writer in self._serving.values():
                writer.transport.abort()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        task.add_done_callback(self._serving.pop)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
        request = Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
        async with self.arrived:
            self.got.append(request)
            self.arrived.notify_all()
        if len(self.got) <= self.hang:
            await reader.read()
            return False
        if self.stream is not None:
            await self.stream(writer)
            return False
        if self.raw:
            writer.write(self.raw)
            await writer.drain()
            return False
        status, more, body = self.answer(request) if self.answer else (self._status(), self.headers, b"")
        head = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in more.items()]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        return True

    def _status(self) -> int:
        return self.statuses.pop(0) if self.statuses else 204

    async def requests(self, count: int) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.got) >= count)


def soon(attempt: int, chance: float, retry_after: float) -> float:
    return 0.01


def settings(folder: Path, webhooks: str = "", **values: object) -> Settings:
    """Settings whose persona folder holds a webhooks.yaml."""
    personas = folder / "personas"
    personas.mkdir(parents=True, exist_ok=True)
    if webhooks:
        (personas / "webhooks.yaml").write_text(webhooks)
    defaults: dict[str, object] = {"personas": personas, "data_dir": folder / "data", "webhook_secret": SECRET}
    return Settings(**{**defaults, **values})  # type: ignore[arg-type]


def endpoint_yaml(name: str, url: str, more: str = "") -> str:
    """One endpoint on this machine, signed with CALLPLEX_WEBHOOK_SECRET, as an item of the file's list."""
    fields = [f"name: {name}", f"url: {url}", "allow: [127.0.0.1]", "secrets: [CALLPLEX_WEBHOOK_SECRET]", more]
    return "  - " + "\n    ".join(line for field in fields for line in field.splitlines()) + "\n"


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[Outbox]:
    """Its deliveries are under way, and cancelled at the end as the app does."""
    task = asyncio.create_task(outbox.run())
    try:
        yield outbox
    finally:
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=10)
        assert done == {task}
        assert task.cancelled()


def outbox(database: Database, store: EndpointStore, worker: str = "w1", **options: Any) -> Outbox:
    return Outbox(database, store, worker, **{"delay": soon, **options})


async def put(database: Database, box: Outbox, *events: Event) -> None:
    """Store events as the journal does, and say so."""
    async with database.begin() as connection:
        await box.put(connection, events)
    box.wake()


async def rows(database: Database) -> list[dict[str, Any]]:
    """All deliveries, in the order in which they were stored."""
    async with database.read() as connection:
        found = await connection.execute(sa.select(deliveries).order_by(deliveries.c.created_at, deliveries.c.place))
        return [dict(row) for row in found.mappings()]


async def states(database: Database) -> list[str]:
    return [str(row["state"]) for row in await rows(database)]


async def settled(database: Database, *wanted: str) -> None:
    """Wait until the deliveries are in these states; the database tells nobody, so it is asked."""
    await until(lambda: states(database), list(wanted))


async def until(value: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Wait for something that wakes nobody."""
    async with asyncio.timeout(30):
        while await value() != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def ids(requests: Sequence[Request]) -> list[str]:
    return [request.headers["webhook-id"] for request in requests]
