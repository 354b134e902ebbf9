"""The pool over real workers: kill them, freeze them, fill them, kill the gateway."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from gateway import pooled_worker
from gateway.engine import EngineFull, EngineLost
from gateway.pool import WorkerPool
from gateway.settings import SettingsInvalid, load_settings
from gateway.worker_client import RemoteEngine
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
            async with worker(address) as again:
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
