"""`callplex bench webhooks`: how fast a healthy endpoint gets its events while another is dead.

Owns the course of the measurement: a real database, two real endpoints on loopback (one answers at
once, one takes the connection and says nothing), as many events for each, one process that delivers.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.records.database import Database
from gateway.settings import Settings
from gateway.webhooks import events, queue
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.outbox import Outbox, delivering

LIMIT_SECONDS = 20.0
"""A thousand deliveries to a healthy endpoint take less."""
GIVE_UP_SECONDS = 300.0
_SECRET_VARIABLE = "CALLPLEX_WEBHOOK_SECRET"


@dataclass(frozen=True, slots=True)
class WebhookSpeed:
    """What was measured; seconds and milliseconds on the wall, CPU of this process, which is the endpoints' too."""

    database: str
    deliveries: int
    seconds: float
    per_second: float
    cpu_seconds: float
    store_ms: float
    """Storing all of them, in one transaction."""
    dead_waiting: int
    """Deliveries that wait for the dead endpoint when the healthy one has all of its own."""
    dead_under_way: int

    @property
    def holds(self) -> bool:
        return self.seconds * 1000 / self.deliveries < LIMIT_SECONDS


def bench_webhooks(deliveries: int, database_url: str, json_output: bool) -> int:
    """Measure and print; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="callplex-bench-") as folder:
        url = database_url or f"sqlite:///{folder}/callplex.sqlite3"
        speed = asyncio.run(measure(Path(folder), url, deliveries))
    text = json.dumps(asdict(speed) | {"holds": speed.holds}) if json_output else as_text(speed)
    sys.stdout.write(text + "\n")
    return 0 if speed.holds else 1


def as_text(speed: WebhookSpeed) -> str:
    """The report for people."""
    return (
        f"{speed.deliveries} deliveries to a healthy endpoint in {speed.seconds:.1f} s "
        f"({speed.per_second:.0f} a second, {speed.cpu_seconds:.1f} s of CPU), {speed.database}\n"
        f"meanwhile {speed.dead_waiting} waited for a dead one, {speed.dead_under_way} of them under way\n"
        f"storing all {2 * speed.deliveries} took {speed.store_ms:.0f} ms"
    )


async def measure(folder: Path, database_url: str, deliveries: int) -> WebhookSpeed:
    """Deliver so many events to a healthy endpoint while as many wait for a dead one."""
    arrived = asyncio.Semaphore(0)
    async with _endpoint(arrived, silent=False) as healthy, _endpoint(arrived, silent=True) as dead:
        store = EndpointStore(_settings(folder, {"healthy": healthy, "dead": dead}))
        async with Database.open(database_url) as database:
            outbox = Outbox(database, store, f"bench-{os.getpid()}")
            began, cpu = time.perf_counter(), time.process_time()
            async with database.begin() as connection:
                await outbox.put(connection, [_event(number) for number in range(deliveries)])
            stored = time.perf_counter()
            async with delivering(outbox), asyncio.timeout(GIVE_UP_SECONDS):
                for _ in range(deliveries):
                    await arrived.acquire()
                seconds, cpu = time.perf_counter() - stored, time.process_time() - cpu
                waiting, under_way = await _waiting(database)
    return WebhookSpeed(
        database.dialect,
        deliveries,
        round(seconds, 2),
        round(deliveries / seconds, 1),
        round(cpu, 2),
        round(1000 * (stored - began), 1),
        waiting,
        under_way,
    )


async def _waiting(database: Database) -> tuple[int, int]:
    async with database.read() as connection:
        counts = await queue.counts(connection)
        return counts.get(("dead", queue.WAITING), 0), await queue.held(connection, "dead", time.time())


def _event(number: int) -> events.Event:
    sample = events.sample(events.ENDED, time.time())
    call_id = f"call_{time.time_ns()}_{number}"
    return events.ended({**sample.data, "call_id": call_id}, sample.at)


def _settings(folder: Path, endpoints: dict[str, str]) -> Settings:
    personas = folder / "personas"
    personas.mkdir()
    one = "- {{name: {}, url: '{}', allow: [127.0.0.1], secrets: [" + _SECRET_VARIABLE + "]}}\n"
    (personas / "webhooks.yaml").write_text("endpoints:\n" + "".join(one.format(*pair) for pair in endpoints.items()))
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    return Settings.model_validate({"personas": personas, "webhook_url": "", "webhook_secret": secret})


@asynccontextmanager
async def _endpoint(arrived: asyncio.Semaphore, silent: bool) -> AsyncIterator[str]:
    """An HTTP server that answers 204 and counts, or takes requests and says nothing."""
    serving: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving[asyncio.current_task()] = writer
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                if silent:
                    continue
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                arrived.release()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for writer in serving.values():
            writer.transport.abort()
        await asyncio.gather(*(task for task in serving if task is not None), return_exceptions=True)
