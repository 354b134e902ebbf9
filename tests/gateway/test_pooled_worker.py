"""What is known of one worker as time passes, on a clock that jumps."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.audio import LINE_FRAME_BYTES
from gateway.engine import EngineFull
from gateway.history import SessionHistory
from gateway.pooled_worker import PooledWorker
from gateway.worker_client import RemoteEngine
from model.wire import History, SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import FreezingWorker, freezing


def test_a_worker_that_fails_again_is_suspect_for_twice_as_long() -> None:
    async def scenario() -> list[int]:
        worker, spans = PooledWorker(RemoteEngine("ws://127.0.0.1:9"), httpx.AsyncClient()), []
        for _ in range(7):
            for _ in range(64):
                worker.doubt()  # of losses that come together the first counts
            spans.append(0)
            while worker.suspect:
                await asyncio.sleep(1)
                spans[-1] += 1
        return spans

    assert virtual_time.run(scenario()) == [15, 30, 60, 120, 240, 300, 300]


async def found_hung(worker: FreezingWorker, known: PooledWorker, seconds: float | None, in_call: bool) -> float:
    """When `on_hung` is called first, in seconds from when the worker freezes, for so long; 60 is never."""
    now, hung = asyncio.get_running_loop().time, asyncio.Event()
    watching = asyncio.create_task(known.watch(hung.set))
    begin = now()
    worker.freeze(seconds)
    if in_call:
        await asyncio.sleep(0.32)
        known.silent()
    await asyncio.wait([asyncio.ensure_future(hung.wait())], timeout=60 - (now() - begin))
    watching.cancel()
    return now() - begin


def hung_after(seconds: float | None, in_call: bool, phase: float) -> float:
    async def scenario() -> float:
        async with freezing(4) as ((worker,), pool, _):
            await asyncio.sleep(phase)
            return await found_hung(worker, pool.workers[0], seconds, in_call)

    return virtual_time.run(scenario())


def test_a_local_worker_that_a_call_found_silent_is_killed_while_the_call_still_waits() -> None:
    assert all(2.5 <= hung_after(None, True, phase) < 3.5 for phase in (0.1, 0.5, 0.9))


def test_a_local_worker_that_is_slow_for_a_moment_is_left_alone() -> None:
    assert hung_after(1.9, True, 0.5) == 60


def test_a_local_worker_that_no_call_found_silent_has_more_time() -> None:
    assert 20 < hung_after(None, False, 0.5) < 30
    assert hung_after(15, False, 0.5) == 60


def goes_on() -> tuple[SessionRequest, History]:
    history = SessionHistory()
    history.caller(bytes(LINE_FRAME_BYTES))
    return SessionRequest("c2", resume=history.resume()), history.content()


def test_a_worker_that_refused_a_session_once_is_asked_again_after_it_had_a_free_slot() -> None:
    async def scenario() -> list[bool]:
        async with freezing(1) as (_, pool, _):
            (worker,), full = pool.workers, []
            first = await worker.open(SessionRequest("c1"))
            with pytest.raises(EngineFull):
                await worker.resume(goes_on)
            await worker.probe()
            full.append(worker.full)
            await first.close()
            await worker.probe()
            full.append(worker.full)
            second = await worker.open(SessionRequest("c3"))
            await worker.probe()  # it has no slot free, and may take a session that goes on all the same
            full.append(worker.full)
            await second.close()
            return full

    assert virtual_time.run(scenario()) == [True, False, False]
