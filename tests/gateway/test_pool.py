"""The pool over real workers: kill them, freeze them, fill them, kill the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from gateway import pooled_worker, worker_client
from gateway.engine import EngineFull, EngineLost
from gateway.pool import WorkerPool
from gateway.pooled_worker import PooledWorker
from gateway.settings import SettingsInvalid, load_settings
from gateway.worker_client import RemoteEngine
from gateway.worker_connection import WorkerIncompatible
from model import wire
from model.echo import EchoEngine, EchoSession
from model.wire import History, Resume, SessionRequest
from tests.gateway.worker_pools import REQUEST, among, make_impatient, started, until, worker

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    make_impatient(monkeypatch)


async def test_calls_go_to_the_worker_with_the_most_free_slots() -> None:
    async with worker(capacity=1) as small, worker(capacity=3) as large, started(among(small, large)) as pool:
        sessions = [await pool.open(REQUEST) for _ in range(4)]
        assert (small.slots.active, large.slots.active) == (1, 3)
        assert not pool.ready
        with pytest.raises(EngineFull, match="no worker has a free slot"):
            await pool.open(REQUEST)
        for session in sessions:
            await session.close()
        await until(lambda: pool.ready)


async def test_slots_that_another_gateway_took_are_found_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled_worker, "PROBE_SECONDS", 60.0)
    async with worker(capacity=2) as first, worker(capacity=1) as second, started(among(first, second)) as pool:
        theirs = [await RemoteEngine(first.url).open(REQUEST) for _ in range(2)]
        ours = await pool.open(REQUEST)
        assert second.slots.active == 1
        for session in (*theirs, ours):
            await session.close()


async def test_a_worker_that_is_down_is_passed_over_and_found_again() -> None:
    async with worker() as alive:
        async with worker() as fleeting:
            address = f"127.0.0.1:{fleeting.port}"
            settings = among(alive, fleeting)
        async with started(settings) as pool:
            assert [known.healthy for known in pool.workers] == [True, False]
            await (await pool.open(REQUEST)).close()
            await alive.stop()
            await until(lambda: not pool.ready)
            with pytest.raises(EngineLost, match="does not answer"):
                await pool.open(REQUEST)
            async with worker(listen=address) as again:
                await until(lambda: pool.ready)
                session = await pool.open(REQUEST)
                assert again.slots.active == 1
                await session.close()


async def test_a_worker_that_dies_between_probes_costs_the_call_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled_worker, "PROBE_SECONDS", 60.0)
    async with worker(capacity=9) as dying, worker() as alive, started(among(dying, alive)) as pool:
        await dying.stop()
        session = await pool.open(REQUEST)
        assert alive.slots.active == 1
        assert not pool.workers[0].healthy
        await session.close()


class StuckEngine(EchoEngine):
    """Opens no session until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.well = asyncio.Event()

    async def open(self, request: SessionRequest) -> EchoSession:
        self.asked += 1
        await self.well.wait()
        return await super().open(request)


async def test_a_worker_that_answers_probes_and_opens_nothing_is_not_asked_first_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_client, "READY_TIMEOUT", 0.2)
    monkeypatch.setattr(pooled_worker, "PROBE_SECONDS", 60.0)
    engine = StuckEngine()
    async with worker(engine, capacity=9) as stuck, worker() as alive, started(among(stuck, alive)) as pool:
        sessions = [await pool.open(REQUEST)]
        assert (engine.asked, alive.slots.active) == (1, 1)
        await pool.workers[0].probe()
        assert pool.workers[0].free == 9
        sessions += [await pool.open(REQUEST) for _ in range(2)]
        assert (engine.asked, alive.slots.active) == (1, 3)

        pool.workers[0]._suspect_until = 0.0  # a while later
        monkeypatch.setattr(worker_client, "READY_TIMEOUT", 20.0)
        trying = asyncio.create_task(pool.open(REQUEST))
        await until(lambda: engine.asked == 2)
        sessions += [await pool.open(REQUEST)]
        assert (engine.asked, alive.slots.active) == (2, 4), "one finds out, others are not held up"
        engine.well.set()
        sessions += [await trying, await pool.open(REQUEST)]
        assert (engine.asked, stuck.slots.active) == (3, 2)
        for session in sessions:
            await session.close()


async def test_a_worker_that_goes_on_with_nothing_is_remembered_as_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pooled_worker, "PROBE_SECONDS", 60.0)
    monkeypatch.setattr(worker_client, "RESUME_READY_TIMEOUT", 0.0)
    async with worker() as server, started(among(server)) as pool:
        (known,) = pool.workers
        going_on = GoesOn()
        with pytest.raises(EngineLost, match="opened no session within"):
            await pool.resume(going_on)
        assert (going_on.described, going_on.refusals) == (1, 1)
        assert (known.hung, known.suspect) == (True, True)
        with pytest.raises(EngineLost, match="no worker that answers in time is left"):
            await pool.resume(going_on)
        assert going_on.described == 1
        await known.probe()
        assert (known.hung, known.suspect) == (False, True)


class GoesOn:
    """A session that is to go on elsewhere. Implements `gateway.pool.Continuation`."""

    def __init__(self) -> None:
        self.described = self.refusals = 0

    def fits(self, worker: PooledWorker) -> bool:
        return not worker.hung

    def describe(self) -> tuple[SessionRequest, History]:
        self.described += 1
        return SessionRequest("c1", resume=Resume()), History()

    def refused(self) -> None:
        self.refusals += 1


async def test_a_worker_that_was_silent_is_asked_last_though_it_says_that_it_is_ready() -> None:
    """Its server answers; what hangs is the engine behind it, which takes the server seconds to find out."""
    async with worker(capacity=9) as silent, worker() as other, started(among(silent, other)) as pool:
        pool.silent(silent.url)
        await until(lambda: not pool.workers[0].hung)
        session = await pool.open(REQUEST)
        assert other.slots.active == 1
        await session.close()


async def test_a_wrong_token_is_said() -> None:
    async with worker(token="secret") as server:
        async with started(among(server, token="guess")) as pool:
            assert not pool.ready
            with pytest.raises(EngineLost, match="set the same CALLPLEX_WORKER_TOKEN"):
                await pool.open(REQUEST)
        async with started(among(server, token="secret")) as pool:
            assert pool.ready


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ("", "must be `local` or a comma list"),
        (" , ", "must be `local` or a comma list"),
        ("http://127.0.0.1:8090", "is not a worker's URL"),
        ("ws://worker.example:8090", "use wss://"),
    ],
)
def test_workers_that_cannot_be_used(workers: str, words: str) -> None:
    with pytest.raises(SettingsInvalid, match=words):
        WorkerPool(load_settings(workers=workers, worker_token=SecretStr("secret")))


@asynccontextmanager
async def says(body: bytes) -> AsyncIterator[str]:
    """Something that answers every request with this body; its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"free": 1e999}',
        b'{"free": 2.5}',
        b'{"free": true}',
        b'{"free": "4"}',
        b'{"free": -1}',
        b'{"free": 99999999999}',
        b'{"capacity": 4}',
        b"[4]",
        b"[" * 60_000,
        b"\xff",
        b'{"free": 4, "subprotocols": 7}',
        b'{"free": 4, "subprotocols": "callplex.v1"}',
        b'{"free": 4, "subprotocols": [["callplex.v1"]]}',
    ],
)
async def test_what_does_not_answer_as_a_worker_does_is_none(body: bytes) -> None:
    async with says(body) as url, started(load_settings(workers=url)) as pool:
        assert not pool.ready
        with pytest.raises(EngineLost, match="answers otherwise than a worker does; look what listens there"):
            await pool.open(REQUEST)


async def test_a_worker_of_another_version_serves_nobody_and_the_gateway_says_so() -> None:
    later = b'{"free": 4, "subprotocols": ["callplex.v3", "callplex.v2"]}'
    async with says(later) as url, started(load_settings(workers=url)) as pool:
        assert not pool.ready
        assert not pool.reachable
        with pytest.raises(EngineLost, match=r"speaks callplex\.v3 or callplex\.v2 and we .* the same version"):
            await pool.open(REQUEST)


@pytest.mark.parametrize(
    "known", [None, [wire.SUBPROTOCOL], ["callplex.v2", wire.WITH_LATE]], ids=["does-not-say", "older", "newer"]
)
async def test_a_worker_with_which_one_protocol_is_shared_serves(known: list[str] | None) -> None:
    body = {"free": 4} if known is None else {"free": 4, "subprotocols": known}
    async with says(json.dumps(body).encode()) as url, started(load_settings(workers=url)) as pool:
        assert pool.ready


async def test_what_says_that_it_is_ready_and_opens_no_websocket_is_believed_only_once_in_a_while() -> None:
    async with says(b'{"free": 4}') as url, started(load_settings(workers=url)) as pool:
        (known,) = pool.workers
        with pytest.raises(WorkerIncompatible, match=r"does not speak callplex\.v1"):
            await known.open(REQUEST)
        await known.probe()
        assert not pool.ready
        with pytest.raises(EngineLost, match=r"does not speak callplex\.v1"):
            await pool.open(REQUEST)
        known._suspect_until = 0.0  # a while later
        await known.probe()
        await until(lambda: pool.ready)


async def test_a_probe_that_is_answered_drop_by_drop_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled_worker, "PROBE_TIMEOUT", 0.2)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.02)
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with started(load_settings(workers=url)) as pool:
            assert "does not answer" in pool.workers[0].reason
        await ended.wait()
