"""Real gateways that are killed while people are on the phone, and what must hold of every call afterwards.

Owns the gateways of one database, the callers, who call again whenever their call is over, and a receiver
of webhooks that takes about half of what it is sent. `check` is the promise: each call that was answered has
one record and was told of under one id, no call was ended by another gateway than its own while that one
lived, and nothing was told of calls that nobody made.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import sqlalchemy as sa

from gateway.bench.line import CallFailed, Line
from gateway.bench.load import LoadOrder, place_call
from gateway.records.database import Database
from gateway.records.tables import calls
from gateway.webhooks.events import ENDED
from tests.gateway.gateway_process import GatewayProcess, running_gateway
from tests.gateway.webhooks.receiver import SECRET, endpoint_yaml

TOKEN = "0123456789abcdef0123456789abcdef"
NUMBER = "+15550100000"
PERSONA = "name: Echo\nvoice: NATF2\nrole: You return what you hear.\nlimits: {max_seconds: 14400}\n"
FAILURES = 5
"""Of one delivery at most: the wait doubles with each, and tests end within minutes."""
EVERY = 0.1
"""Seconds between two frames of a caller: this is not about sound."""
PLACING = 8
"""Calls that are set up at once."""
FILED_WITHIN = 15.0
"""Seconds in which a gateway that lives has filed a call that is over."""


class FlakyReceiver:
    """Takes every second request at random; the others get a 5xx, no answer, or a reset."""

    def __init__(self, seed: int) -> None:
        self.requests = 0
        self.taken: dict[str, set[str]] = defaultdict(set)
        """Of each call the ids under which its `call.ended` was taken."""
        self.ended_at: dict[str, float] = {}
        """When a `call.ended` first came, taken or not; monotonic seconds."""
        self.calls: set[str] = set()
        """All that anything was told of."""
        self.url = ""
        self._refused: Counter[str] = Counter()
        self._chance = random.Random(seed)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[FlakyReceiver]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        self._open: set[asyncio.StreamWriter] = set()
        try:
            yield self
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        event = json.loads(await reader.readexactly(int(headers["content-length"])))
        webhook_id, call_id = headers["webhook-id"], event["data"]["call_id"]
        self.requests += 1
        self.calls.add(call_id)
        if event["type"] == ENDED:
            self.ended_at.setdefault(call_id, time.monotonic())
        if self._refused[webhook_id] < FAILURES and self._chance.random() < 0.5:
            self._refused[webhook_id] += 1
            return await self._fail(reader, writer)
        if event["type"] == ENDED:
            self.taken[call_id].add(webhook_id)
        writer.write(b"HTTP/1.1 204 X\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        return True

    async def _fail(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        how = self._chance.choice(("status", "status", "silence", "reset"))
        if how == "status":
            status = self._chance.choice((500, 502, 503, 504))
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
            await writer.drain()
            return True
        if how == "silence":
            await reader.read()
        else:
            writer.transport.abort()
        return False


@dataclass(eq=False)
class Replica:
    """A gateway's process; another takes its place when it was killed."""

    gateway: GatewayProcess
    place: int
    killed_at: float = 0.0
    """Monotonic seconds; 0: it lives."""


class Fleet:
    """The gateways of one database, each with a folder of its own under `folder`."""

    def __init__(self, folder: Path, database_url: str, receiver: FlakyReceiver) -> None:
        self.up: list[Replica] = []
        self._folder = folder
        self._stack = ExitStack()
        self.personas = folder / "personas"
        self.personas.mkdir()
        (self.personas / "echo.yaml").write_text(PERSONA)
        (self.personas / "routing.yaml").write_text("default: {persona: echo}\n")
        more = "events: [call.started, call.ended, call.failed]\ntimeout_seconds: 1\nconcurrency: 32"
        (self.personas / "webhooks.yaml").write_text("endpoints:\n" + endpoint_yaml("crm", receiver.url, more))
        self._settings = {
            "CALLPLEX_PERSONAS": str(self.personas),
            "CALLPLEX_DATABASE_URL": database_url,
            "CALLPLEX_EMBEDDED_ECHO": "1",
            "CALLPLEX_TWILIO_AUTH_TOKEN": TOKEN,
            "CALLPLEX_WEBHOOK_SECRET": SECRET,
            "CALLPLEX_LOG_LEVEL": "error",
        }

    async def start(self, place: int) -> Replica:
        """A gateway in the folder of those that had this place before it."""
        process = running_gateway(self._folder / f"replica-{place}", **self._settings)
        replica = Replica(await asyncio.to_thread(self._stack.enter_context, process), place)
        self.up.append(replica)
        return replica

    def kill(self, replica: Replica) -> None:
        """kill -9."""
        self.up.remove(replica)
        replica.killed_at = time.monotonic()
        replica.gateway.process.kill()
        replica.gateway.process.wait()

    def close(self) -> None:
        self._stack.close()


@dataclass(eq=False)
class Caller:
    """One call as its caller knows it."""

    line: Line
    replica: Replica
    heard: bool = False
    """There was sound: the call was answered."""
    hung_up_at: float = 0.0
    """Monotonic seconds; 0: the line went dead."""


@dataclass
class Callers:
    """People who call `fleet`, speak for up to `longest` seconds, hang up and call again; `count` at a time."""

    fleet: Fleet
    count: int
    longest: float
    chance: random.Random
    all: list[Caller] = field(default_factory=list)
    attempts: int = 0

    @property
    def in_flight(self) -> int:
        return sum(caller.heard and not caller.line.closed.done() for caller in self.all[-4 * self.count :])

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """They call while inside; on leaving, those who are on the phone hang up."""
        self._closing = asyncio.Event()
        self._placing = asyncio.Semaphore(PLACING)
        async with httpx.AsyncClient(timeout=10) as client, asyncio.TaskGroup() as tasks:
            talking = tasks.create_task(self._talk())
            people = [tasks.create_task(self._call_again_and_again(client)) for _ in range(self.count)]
            try:
                yield
            finally:
                self._closing.set()
                await asyncio.wait(people)
                talking.cancel()

    async def busy(self, share: float, seconds: float = 120.0) -> bool:
        """Wait until so many of them are in a call that was answered; False if that takes too long."""
        try:
            async with asyncio.timeout(seconds):
                while self.in_flight < share * self.count:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    async def _call_again_and_again(self, client: httpx.AsyncClient) -> None:
        while not self._closing.is_set():
            caller = await self._place(client)
            if caller is None:
                await self._wait(self._closing.wait(), 0.2)
                continue
            await self._wait(asyncio.shield(caller.line.closed), self.chance.uniform(self.longest / 4, self.longest))
            if not caller.line.closed.done():
                caller.hung_up_at = time.monotonic()
                await caller.line.stop()

    async def _wait(self, what: object, seconds: float) -> None:
        """For it, for so long, or until all hang up."""
        waits = {asyncio.ensure_future(what), asyncio.ensure_future(self._closing.wait())}  # type: ignore[call-overload]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def _place(self, client: httpx.AsyncClient) -> Caller | None:
        """One call; None if it did not come about, as its gateway was just killed."""
        async with self._placing:
            if not self.fleet.up or self._closing.is_set():
                return None
            replica = self.chance.choice(self.fleet.up)
            self.attempts += 1
            try:
                line = await place_call(client, LoadOrder(replica.gateway.url, TOKEN, NUMBER, 1, 1.0, 0), self.attempts)
            except (CallFailed, httpx.HTTPError, OSError, TimeoutError):
                return None
        caller = Caller(line, replica)
        self.all.append(caller)
        return caller

    async def _talk(self) -> None:
        """20 ms of everybody's sound now and then, as on a bad line; what comes back is heard and forgotten."""
        at = time.monotonic()
        while True:
            for caller in self.all[-4 * self.count :]:
                if not caller.line.closed.done() and not caller.hung_up_at:
                    caller.line.send_media(at)
                if caller.line.received:
                    caller.heard = caller.heard or any(b'"media"' in body for _, body in caller.line.received)
                    caller.line.received.clear()
            at = max(at + EVERY, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, at - time.monotonic()))


async def told(database: Database, callers: Callers, receiver: FlakyReceiver, seconds: float) -> None:
    """Wait until every call that was answered is over in the records and was told of; at most so long."""
    wanted = {caller.line.call_sid for caller in callers.all if caller.heard}
    try:
        async with asyncio.timeout(seconds):
            while True:
                over = [row for row in await records(database) if row["state"] == "ended"]
                sids = {row["carrier_call_id"] for row in over if row["id"] in receiver.taken}
                if wanted <= sids and all(row["id"] in receiver.taken for row in over):
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        return  # `check` says what is missing.


async def records(database: Database) -> Sequence[sa.RowMapping]:
    async with database.read() as connection:
        return (await connection.execute(sa.select(calls))).mappings().all()


async def check(database: Database, callers: Callers, receiver: FlakyReceiver) -> Counter[str]:
    """The promise. Returns how often calls ended for which reason."""
    rows = await records(database)
    by_sid = {row["carrier_call_id"]: row for row in rows}
    assert len(by_sid) == len(rows), "a call has two records"
    for caller in callers.all:
        row = by_sid.get(caller.line.call_sid)
        if row is None:
            assert not caller.heard, f"{caller.line.call_sid} was answered and has no record"
            continue
        assert row["state"] == "ended", dict(row)
        assert len(receiver.taken[row["id"]]) == 1, (dict(row), receiver.taken[row["id"]])
        _check_end(caller, row, receiver.ended_at[row["id"]])
    made = {f"+1555{number:07d}" for number in range(1, callers.attempts + 1)}
    assert {row["from_number"] for row in rows} <= made
    assert receiver.calls <= {row["id"] for row in rows}, "something was told of a call that has no record"
    return Counter(row["end_reason"] for row in rows)


def _check_end(caller: Caller, row: sa.RowMapping, told_at: float) -> None:
    """It ended for its own reason: hung up, or its gateway killed."""
    killed_at = caller.replica.killed_at
    if not caller.hung_up_at:
        assert killed_at, f"{row['id']} was cut off, but its gateway lives"
    assert told_at >= (caller.hung_up_at or killed_at), f"{row['id']} was ended while it was up"
    lived = not killed_at or killed_at > caller.hung_up_at + FILED_WITHIN
    if caller.hung_up_at and caller.heard and lived:
        assert row["end_reason"] == "caller_hangup", dict(row)
