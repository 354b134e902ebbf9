"""Sessions whose worker is killed, frozen or stopped: another goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from gateway import local_worker
from gateway.engine import EngineLost, Session
from gateway.local_worker import LocalWorker
from gateway.pool import Continuation, WorkerPool
from gateway.resume import ResumingSession
from gateway.resuming_pool import AT_ONCE, RESUME_WITHIN, ResumingPool
from gateway.settings import load_settings
from gateway.worker_client import RemoteSession
from model import wire
from model.server import WorkerServer
from model.wire import AgentFrame, CallerFrame, Late, SessionRequest
from tests.gateway.token_workers import Caller, busy, idle, pool_of, time_of, token_worker, two_workers, worker_process
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession

pytestmark = pytest.mark.anyio

FAST = 0.004
"""Seconds of a frame where only the order counts."""


async def ending(session: RemoteSession) -> None:
    async for _ in session.outputs():
        pass


WORDS = "I am sorry, I have to end the call here. Goodbye."


async def test_a_call_goes_on_when_its_worker_is_killed() -> None:
    async with two_workers() as (first, second, pool):
        kill = partial(first.signal, signal.SIGKILL)
        caller = Caller(pace=FAST, greeting="Hello, this is the bank.", said={90: WORDS}, actions={100: kill})
        await caller.call(pool, 240)
        caller.check()
        (change,) = caller.changes
        assert change.worker.endswith(second.name_ends)
        assert change.missed == len(caller.missed)
        assert "broke the connection" in change.reason
        assert set(caller.missed) <= set(range(90, 130))


class LateSession(TokenSession):
    """Says of all its frames that they came late."""

    def push(self, frame: CallerFrame) -> None:
        super().push(frame)
        self._pending.append(Late(frame.index))


class LateEngine(TokenEngine):
    async def open(self, request: SessionRequest) -> LateSession:
        return LateSession(TokenModel())


async def test_what_the_worker_says_of_late_frames_reaches_the_call() -> None:
    server = WorkerServer(LateEngine(), "127.0.0.1:0")
    await server.start()
    pool = WorkerPool(load_settings(workers=server.url))
    await pool.start()
    try:
        caller = await Caller(pace=FAST).call(ResumingPool(pool), 20)
        assert len(caller.frames) == 20
        assert [output.index for output in caller.heard if isinstance(output, Late)] == list(range(19))
    finally:
        await pool.stop()
        await server.stop()


async def test_a_call_goes_on_when_it_is_lost_before_its_first_frame_was_answered() -> None:
    async with two_workers() as (first, _, pool):
        caller = Caller(greeting="Hello.", pace=FAST, actions={0: partial(first.signal, signal.SIGKILL)})
        await caller.call(pool, 60)
        caller.check()
        assert caller.missed[:1] == [0]


async def test_a_worker_that_hangs_is_left_after_three_missed_frames() -> None:
    async with two_workers() as (first, second, pool):
        caller = Caller(actions={5: partial(first.signal, signal.SIGSTOP)})
        await caller.call(pool, 20)
        caller.check()
        (change,) = caller.changes
        assert "was silent for 0.24 s" in change.reason
        assert change.worker.endswith(second.name_ends)
        assert caller.missed[0] in (5, 6)
        assert 3 <= len(caller.missed) <= 6


async def test_a_worker_that_is_stopped_hands_every_call_over_at_once() -> None:
    async with two_workers() as (first, second, pool):
        callers = [Caller(seed, actions={}) for seed in range(10)]
        callers[0].actions[12] = partial(first.signal, signal.SIGTERM)
        await asyncio.gather(*(caller.call(pool, 24) for caller in callers))
        for caller in callers:
            caller.check()
            (change,) = caller.changes
            assert "is being stopped" in change.reason
            assert change.worker.endswith(second.name_ends)
            assert len(caller.missed) <= 5
        assert await first.process.wait() == 0


async def test_a_call_is_resumed_again_and_remembers_what_it_missed_the_first_time() -> None:
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(token_worker("--capacity", capacity)) for capacity in ("30", "20", "10")
        ]
        pool = await stack.enter_async_context(pool_of(*workers))
        kills: dict[int, Callable[[], object]] = {
            60: partial(workers[0].signal, signal.SIGKILL),
            160: partial(workers[1].signal, signal.SIGKILL),
        }
        caller = await Caller(pace=FAST, actions=kills).call(pool, 260)
        caller.check()
        assert [change.worker.endswith(workers[1 + n].name_ends) for n, change in enumerate(caller.changes)] == [
            True
        ] * 2
        assert caller.missed[0] < 100
        assert caller.missed[-1] > 150


async def test_a_call_that_is_longer_than_the_window_goes_on_from_its_last_cut() -> None:
    async with two_workers() as (first, _, pool):
        caller = Caller(pace=FAST, actions={200: partial(first.signal, signal.SIGKILL)})
        await caller.call(pool, 240)
        caller.check()
        assert len(caller.changes) == 1


async def test_a_worker_that_is_slow_to_take_a_call_answers_what_came_meanwhile() -> None:
    async with two_workers("--open-seconds", "0.4") as (first, _, pool):
        caller = Caller(actions={5: partial(first.signal, signal.SIGKILL)})
        await caller.call(pool, 16)
        caller.check()
        assert len(caller.missed) <= 3
        assert 0.3 < caller.gap() < 1.5


async def test_a_call_that_no_worker_can_take_is_lost_soon() -> None:
    async with token_worker() as only, pool_of(only) as pool:
        caller = await Caller(pace=FAST, actions={20: partial(only.signal, signal.SIGKILL)}).call(pool, 2_000)
        assert "broke the connection" in caller.lost
        assert caller.lost.count("worker") == 2  # how it was lost, and why nobody takes it
        assert len(caller.lines) < 1_000


async def test_a_call_is_lost_when_the_others_are_full() -> None:
    async with (
        token_worker("--capacity", "2") as first,
        token_worker("--capacity", "1") as second,
        pool_of(first, second, within=0) as pool,
    ):
        callers = [Caller(seed, pace=FAST) for seed in range(3)]
        callers[0].actions[30] = partial(first.signal, signal.SIGKILL)
        await asyncio.gather(*(caller.call(pool, 200) for caller in callers))
        assert sorted(bool(caller.lost) for caller in callers) == [False, True, True]
        assert all("no worker has a free slot" in caller.lost for caller in callers if caller.lost)


@asynccontextmanager
async def own_worker() -> AsyncIterator[tuple[WorkerPool, int]]:
    """A pool with a token worker as our own child, and that one's process."""
    pool = WorkerPool(load_settings(), command=(sys.executable, "-m", "tests.token_worker", "--exit-with-parent"))
    await pool.start()
    try:
        assert pool.local is not None
        assert pool.local.pid is not None
        yield pool, pool.local.pid
    finally:
        await pool.stop()


async def test_our_own_worker_started_again_takes_its_calls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_worker, "BACKOFF_FIRST", 0.1)
    async with own_worker() as (pool, pid):
        kill = partial(os.kill, pid, signal.SIGKILL)
        caller = Caller(actions={5: kill})
        async with asyncio.timeout(30):
            await caller.call(ResumingPool(pool), 36)
        caller.check()
        (change,) = caller.changes
        assert 2 <= change.missed < RESUME_WITHIN / 0.08


@pytest.mark.long
async def test_our_own_worker_that_hangs_is_started_again_before_its_calls_give_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What its process takes to start is the machine's affair: the caller's clock stands still, and there is a second
    left for it."""
    running, spawn = asyncio.Event(), LocalWorker._spawn

    async def spawned(self: LocalWorker) -> str:
        running.clear()
        try:
            return await spawn(self)
        finally:
            running.set()

    monkeypatch.setattr(LocalWorker, "_spawn", spawned)
    async with own_worker() as (pool, pid):
        freeze = partial(os.kill, pid, signal.SIGSTOP)
        caller = Caller(actions={5: freeze}, held=running.wait)
        async with asyncio.timeout(60):
            await caller.call(ResumingPool(pool, within=60), 150)
        caller.check()
        (change,) = caller.changes
        assert "was silent for 0.24 s" in change.reason
        assert change.missed < (RESUME_WITHIN - 1) / 0.08


@pytest.mark.long
async def test_a_call_that_waited_for_longer_than_its_sound_is_kept_goes_on_without_what_was_said() -> None:
    async with own_worker() as (pool, pid):
        kill = partial(os.kill, pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            caller = await Caller(pace=FAST, actions={20: kill}).call(ResumingPool(pool, within=40), 2_000)
        assert not caller.lost
        assert [frame.index for frame in caller.frames] == list(range(2_000))
        (change,) = caller.changes
        assert change.missed > 125, "at this pace 0.5 s are as long as 10"
        assert change.missed <= len(caller.missed)
        assert caller.missed[-1] < 1_999


async def test_a_call_waits_for_a_worker_that_others_start_again_where_it_is_told_to() -> None:
    async with token_worker() as only, pool_of(only, within=40) as pool:
        kill = partial(only.signal, signal.SIGKILL)
        calling = asyncio.create_task(Caller(actions={3: kill}).call(pool, 60))
        address = only.url.removeprefix("ws://").removesuffix(wire.PATH)
        await only.process.wait()
        async with token_worker("--listen", address):
            caller = await calling
        caller.check()
        assert len(caller.changes) == 1


async def test_a_session_that_breaks_every_worker_is_let_go() -> None:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(token_worker("--breaks-after", "20")) for _ in range(4)]
        pool = await stack.enter_async_context(pool_of(*workers))
        caller = await Caller(pace=FAST).call(pool, 2_000)
        assert "lost 3 times within 10 s" in caller.lost
        assert len(caller.changes) == 2


async def test_a_call_that_ends_while_it_is_being_resumed_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two_workers("--open-seconds", "30") as (first, second, pool):
        caller = Caller(pace=FAST, actions={20: partial(first.signal, signal.SIGKILL)})
        call = asyncio.create_task(caller.call(pool, 100_000))
        await busy(second)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await idle(second)
    assert "call c0: it ended between two workers; what its caller said after 0.0 s is not written down" in caplog.text


def sessions_of(pool: ResumingPool, monkeypatch: pytest.MonkeyPatch) -> list[ResumingSession]:
    """All that are opened in `pool` from now on."""
    opened: list[ResumingSession] = []
    open_one = pool.open

    async def kept(request: SessionRequest) -> Session:
        session = await open_one(request)
        assert isinstance(session, ResumingSession)
        opened.append(session)
        return session

    monkeypatch.setattr(pool, "open", kept)
    return opened


def remembers(session: ResumingSession) -> object:
    """What is still known of a call: true if anything is."""
    history = session.history
    words = history.clips or history.resume().queued or session._unsaid or session._answers.waiting
    return history.size or words or session._unsent


async def test_what_a_call_was_is_gone_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_workers() as (_, _, pool):
        opened = sessions_of(pool, monkeypatch)
        known: list[object] = []
        look = lambda: known.append(remembers(opened[0]))  # noqa: E731
        caller = Caller(pace=FAST, greeting="Hello, this is the bank.", actions={8: look})
        await caller.call(pool, 12)
        caller.check()
        assert known[0]
        assert not remembers(opened[0])


async def test_what_a_call_was_is_gone_when_it_is_cancelled_while_it_is_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_workers("--open-seconds", "30") as (first, second, pool):
        pool._within = 60.0
        opened = sessions_of(pool, monkeypatch)
        caller = Caller(pace=FAST, greeting=WORDS, actions={20: partial(first.signal, signal.SIGKILL)})
        call = asyncio.create_task(caller.call(pool, 100_000))
        await busy(second)
        (session,) = opened
        while not session._unsent:  # noqa: ASYNC110  the caller goes on talking
            await asyncio.sleep(FAST)
        assert remembers(session)
        closing = session._session.close

        async def never_done() -> None:
            assert not remembers(session), "before anything is waited for"
            await closing()

        monkeypatch.setattr(session._session, "close", never_done)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert call.cancelled()
        assert not remembers(session)


async def test_what_the_worker_still_said_when_the_call_ended_is_not_remembered() -> None:
    async with two_workers() as (_, _, pool):
        session = await pool.open(SessionRequest("c1"))
        assert isinstance(session, ResumingSession)
        outputs = session.outputs()
        for _ in range(6):
            await session.send(bytes(3840), bytes(1280))
        await anext(outputs)
        inbox = session._session._connection.inbox
        async with asyncio.timeout(20):
            while not any(isinstance(output, AgentFrame) for output in inbox):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.01)
        await session.close()
        assert [output async for output in outputs], "it had come before"
        assert not remembers(session)


async def test_sessions_lost_together_speak_again_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_workers() as (first, second, pool):
        clock = partial(time_of, os.getpid(), second.process.pid)
        callers = [Caller(seed, clock=clock) for seed in range(64)]
        callers[0].actions[10] = partial(first.signal, signal.SIGKILL)
        for caller in callers:
            caller.held = partial(caller.moved, 20)
        opening, most, resume = 0, 0, pool._pool.resume

        async def counted(session: Continuation) -> RemoteSession:
            nonlocal opening, most
            opening += 1
            most = max(most, opening)
            try:
                return await resume(session)
            finally:
                opening -= 1

        monkeypatch.setattr(pool._pool, "resume", counted)
        await asyncio.gather(*(caller.call(pool, 26) for caller in callers))
        for caller in callers:
            caller.check()
            assert [change.worker.endswith(second.name_ends) for change in caller.changes] == [True]
        assert most == AT_ONCE, "as many as a worker prepares together, and as many again"
        gaps = sorted(caller.gap() for caller in callers)
        assert gaps[-1] < 1.0


async def test_an_engine_without_tokens_is_lost_with_its_worker_as_ever() -> None:
    async with (
        worker_process("tests.echo_worker") as first,
        worker_process("tests.echo_worker") as second,
        pool_of(first, second) as pool,
    ):
        session = await pool.open(SessionRequest("c1"))
        assert isinstance(session, RemoteSession)
        await session.send(bytes(3840), bytes(1280))
        for worker in (first, second):
            worker.signal(signal.SIGKILL)
        with pytest.raises(EngineLost, match="broke the connection"):
            await ending(session)
        await session.close()
