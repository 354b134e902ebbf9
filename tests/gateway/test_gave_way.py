"""What the agent gave up for a caller who spoke over it stays given up when the call changes its worker."""

from __future__ import annotations

import asyncio

import pytest

from gateway.pool import WorkerPool
from gateway.resuming_pool import ResumingPool
from gateway.settings import load_settings
from model.server import WorkerServer
from model.wire import AgentText, CallerFrame, GaveWay, SessionRequest
from tests.gateway.token_workers import Caller
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession

pytestmark = pytest.mark.anyio

GREETING = "Good morning and welcome to the bank, how can I help you today?"


class InterruptedSession(TokenSession):
    """Says no more of its greeting from frame 20 on."""

    def push(self, frame: CallerFrame) -> None:
        super().push(frame)
        if frame.index == 20:
            self._model.words.clear()
            self._pending.append(GaveWay(frame.index, GREETING))


class InterruptedEngine(TokenEngine):
    async def open(self, request: SessionRequest) -> InterruptedSession:
        model = TokenModel()
        model.say(request.greeting)
        return InterruptedSession(model)


async def test_an_interrupted_greeting_is_not_recited_by_the_next_worker() -> None:
    first, second = (WorkerServer(InterruptedEngine(), "127.0.0.1:0", capacity=slots) for slots in (200, 100))
    for server in (first, second):
        await server.start()
    pool = WorkerPool(load_settings(workers=f"{first.url},{second.url}"))
    await pool.start()
    draining: list[asyncio.Task[None]] = []
    try:
        caller = Caller(pace=0.004, greeting=GREETING)
        caller.actions[60] = lambda: draining.append(asyncio.create_task(first.drain(10)))
        await caller.call(ResumingPool(pool), 160)
        await draining[0]
    finally:
        await pool.stop()
        for server in (first, second):
            await server.stop()
    (change,) = caller.changes
    words = [(one.index, one.text) for one in caller.heard if isinstance(one, AgentText)]
    assert [text for index, text in words if index <= 20] == [f" {word}" for word in GREETING.split()[:5]]
    assert len([index for index, _ in words if index > change.index]) > 10
    assert all(text == f" a{index}" for index, text in words if index > 20)
