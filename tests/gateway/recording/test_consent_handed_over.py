"""A consent line whose worker is lost while it is said, over the wire: each call at another frame of the line."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.pool import WorkerPool
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.resuming_pool import ResumingPool
from gateway.settings import load_settings
from model.server import WorkerServer
from model.wire import FRAME_SECONDS, CallerFrame, History, SessionRequest
from tests import virtual_time
from tests.gateway.memory_line import MemoryLeg
from tests.gateway.recording.sound import samples
from tests.gateway.told import Told
from tests.token_model import WORD_EVERY, TokenModel
from tests.token_worker import TokenEngine, TokenSession

FRAMES = {"You": 3, "are": 3, "recorded": 5, "now": 3}
"""The line's words, and how long each is estimated to be heard."""
WORDS = list(FRAMES)
LINE = " ".join(WORDS)
LENGTH = WORD_EVERY * (len(WORDS) - 1) + FRAMES["now"]


class BreakingSession(TokenSession):
    """Answers nothing from frame `index` on, and breaks with the one after it."""

    def __init__(self, model: TokenModel, index: int) -> None:
        super().__init__(model, breaks_after=index + 2)
        self._index = index

    def push(self, frame: CallerFrame) -> None:
        if frame.index < self._index:
            super().push(frame)
        else:
            self._steps += 1
            self._wake.set()


class BreakingEngine(TokenEngine):
    """Loses each session at the frame that is its call's name, and takes none of another worker's."""

    async def open(self, request: SessionRequest) -> TokenSession:
        model = TokenModel()
        model.say(request.greeting)
        return BreakingSession(model, int(request.call_id))

    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        raise ZeroDivisionError("a fault of the engine")


@dataclass
class Consented:
    """A call whose worker is lost at frame `index`."""

    index: int
    folder: Path
    told: Told = field(default_factory=Told)

    async def run(self, pool: ResumingPool) -> None:
        recorder = Recorder(RecordingPlan(self.folder, after_consent=True))
        request = SessionRequest(str(self.index), greeting=f"{LINE} Hello.")
        plan = CallPlan("bank", "v", request, consent=LINE)
        self.call = Call(MemoryLeg(4.5), pool, plan, recorder, self.told)
        self.reason = await self.call.run()

    @property
    def consent(self) -> dict[str, object]:
        (data,) = (data for _, kind, data in self.told.events if kind == "consent")
        return dict(data)


async def calls_with(folder: Path, *engines: TokenEngine) -> list[Consented]:
    """Begun with workers of the first engine, each lost with another frame of the line."""
    calls = [Consented(index, folder / f"{index}") for index in range(1, LENGTH)]
    async with AsyncExitStack() as stack:
        servers = [WorkerServer(engine, "127.0.0.1:0", capacity=100 >> place) for place, engine in enumerate(engines)]
        for server in servers:
            await server.start()
            stack.push_async_callback(server.stop)
        # On this clock nobody waits for a connection that was just accepted, unless time is to pass.
        stack.push_async_callback(asyncio.sleep, 1)
        pool = WorkerPool(load_settings(workers=",".join(server.url for server in servers)))
        stack.push_async_callback(pool.stop)
        await pool.start()
        await asyncio.gather(*(call.run(ResumingPool(pool)) for call in calls))
    return calls


def test_the_line_is_heard_once_the_next_worker_has_said_the_rest_of_it(tmp_path: Path) -> None:
    for one in virtual_time.run(calls_with(tmp_path, BreakingEngine(), TokenEngine())):
        assert one.reason == "caller_hangup", one.index
        (change,) = one.call.worker_changes
        assert change.missed > 0
        place, heard = divmod(change.index - change.missed - 1, WORD_EVERY)
        if heard + 1 >= FRAMES[WORDS[place]]:
            place += 1
        last = WORD_EVERY * (math.ceil(change.index / WORD_EVERY) + len(WORDS) - 1 - place)
        assert one.consent["heard"], one.index
        at = one.consent["at"]
        assert isinstance(at, float)
        assert at >= last * FRAME_SECONDS + 0.24 + 0.1, one.index
        left, _ = samples(one.folder / "call.wav")
        assert int(np.argmax(np.abs(left) > 0)) / 8_000 >= at - 0.01
        texts = [each.text for each in one.call.transcript.utterances() if each.speaker == "agent"]
        assert " ".join(texts).startswith("Hello. a")


def test_nothing_is_kept_of_a_call_that_nobody_goes_on_with(tmp_path: Path) -> None:
    for one in virtual_time.run(calls_with(tmp_path, BreakingEngine())):
        assert one.reason == "worker_lost", one.index
        assert one.consent["heard"] is False
        assert one.told.utterances == []
        assert not one.folder.exists()
