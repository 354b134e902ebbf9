"""Of the calls that lost one worker, the one in which somebody spoke last is opened elsewhere first."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import pytest

from gateway import resuming_pool
from gateway.audio import LINE_FRAME_BYTES, Upsampler
from gateway.engine import Session
from gateway.pool import WorkerPool
from gateway.resuming_pool import ResumingPool
from gateway.settings import load_settings
from model.server import WorkerServer
from model.wire import AgentText, CallerFrame, History, SessionRequest
from tests.gateway.token_workers import Caller
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession

pytestmark = pytest.mark.anyio

LOST_AT, FRAMES = 60, 240
SILENT_FOR = (0, 50, 0, 25)
"""Frames of silence at the loss, by caller: none, 4 s, none, 2 s."""


class WordlessSession(TokenSession):
    """Its agent never says a word, which would be speech, too."""

    def push(self, frame: CallerFrame) -> None:
        super().push(frame)
        kept = [output for output in self._pending if not isinstance(output, AgentText)]
        self._pending.clear()
        self._pending.extend(kept)


class OneAtATimeEngine(TokenEngine):
    """Remembers in which order sessions go on here; the first has to wait until the others want to."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.all_lost = asyncio.Event()

    async def open(self, request: SessionRequest) -> WordlessSession:
        return WordlessSession(TokenModel())

    async def resume(self, request: SessionRequest, history: History) -> WordlessSession:
        self.order.append(request.call_id)
        await self.all_lost.wait()
        return WordlessSession(TokenModel(request.resume, history))


@dataclass
class HushedCaller(Caller):
    """Says nothing from a frame on."""

    hushed_from: int = FRAMES

    async def speak(self, session: Session, frames: int, listening: asyncio.Task[None]) -> None:
        random, upsample = np.random.default_rng(self.seed), Upsampler()
        begin = time.monotonic()
        for index in range(frames):
            await asyncio.sleep(max(0.0, begin + index * self.pace - time.monotonic()))
            if action := self.actions.get(index):
                action()
            loud = random.integers(-9_000, 9_000, LINE_FRAME_BYTES // 2).astype(np.int16).tobytes()
            line = loud if index < self.hushed_from else bytes(LINE_FRAME_BYTES)
            await session.send(upsample(line), line)


async def test_calls_go_on_in_the_order_of_their_newest_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming_pool, "AT_ONCE", 1)
    engine = OneAtATimeEngine()
    first, second = (WorkerServer(engine, "127.0.0.1:0", capacity=slots) for slots in (200, 100))
    for server in (first, second):
        await server.start()
    pool = WorkerPool(load_settings(workers=f"{first.url},{second.url}"))
    await pool.start()
    callers = [
        HushedCaller(number, pace=0.004, hushed_from=LOST_AT - silent if silent else FRAMES)
        for number, silent in enumerate(SILENT_FOR)
    ]
    draining: list[asyncio.Task[None]] = []

    def look() -> None:
        """A call that waits for its turn hears silence in place of answers; the one being opened waits for its own."""
        waiting = [caller for caller in callers if f"c{caller.seed}" not in engine.order]
        if engine.order and all(len(caller.missed) >= 2 for caller in waiting):
            engine.all_lost.set()

    speaker = callers[SILENT_FOR.index(0)]
    speaker.actions = dict.fromkeys(range(LOST_AT, FRAMES), look)
    speaker.actions[LOST_AT] = lambda: draining.append(asyncio.create_task(first.drain(10)))
    try:
        calls = ResumingPool(pool)
        await asyncio.gather(*(caller.call(calls, FRAMES) for caller in callers))
        await draining[0]
    finally:
        await pool.stop()
        for server in (first, second):
            await server.stop()
    assert all(len(caller.changes) == 1 for caller in callers)
    assert len(engine.order) == len(callers)
    silences = [SILENT_FOR[int(call.removeprefix("c"))] for call in engine.order[1:]]
    assert silences == sorted(silences), "whoever was lost first found nobody waiting"
