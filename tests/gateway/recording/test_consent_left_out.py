"""A consent line of which the phone line leaves words out, as they come in a burst, or sends none, as it is held."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.rtp.talk import CUSHION, TalkQueue
from model.wire import AgentText, Output, SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import freezing
from tests.gateway.memory_line import MemoryLeg, ScriptedEngine
from tests.gateway.told import Told
from tests.token_worker import TokenEngine

LINE = "You are being recorded now"


class QueuedLeg(MemoryLeg):
    """Behind it the queue of a telephone line, which gives 20 ms each 20 ms; and sends them, unless it is held."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.queue = TalkQueue()
        self.sent: list[bytes] = []

    async def tick(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            spoken = self.queue.pop()
            if spoken is not None and self.on_hold:
                self.queue.not_sent()
            elif spoken is not None:
                self.sent.append(spoken)
            due += 0.02
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def play(self, pcm: bytes) -> Sequence[int]:
        await super().play(pcm)
        return [before // 4 for before in self.queue.push(pcm)]

    async def drain(self, timeout: float) -> bool:
        handed, unsent = self.queue.handed, self.queue.unsent
        await asyncio.sleep(0.02 * (CUSHION + handed - self.queue.gone))
        return not self.on_hold and self.queue.unsent == unsent


async def consent_of(leg: QueuedLeg, engine: Any, folder: Path) -> tuple[Call, list[dict[str, Any]]]:
    """What the call tells of its consent."""
    told = Told()
    ticking = asyncio.create_task(leg.tick())
    request = SessionRequest("c1", greeting=LINE)
    recorder = Recorder(RecordingPlan(folder, after_consent=True))
    call = Call(leg, engine, CallPlan("p", "v", request, consent=LINE), recorder, told)
    assert await call.run() == "caller_hangup"
    ticking.cancel()
    await asyncio.wait([ticking])
    return call, [dict(data) for _, kind, data in told.events if kind == "consent"]


@pytest.mark.parametrize(("opens", "whole"), [(0.3, True), (1.3, False)])
def test_a_line_said_in_a_burst_counts_as_heard_only_if_the_phone_line_left_nothing_of_it_out(
    opens: float, whole: bool, tmp_path: Path
) -> None:
    """The worker is killed as the line has begun; the next answers what waited at once."""
    folder = tmp_path / "recording"

    async def run() -> None:
        leg = QueuedLeg(6.0)
        engines = [TokenEngine(), TokenEngine(open_seconds=opens)]
        async with freezing(8, 4, engines=engines, within=8) as (workers, _, calls):
            asyncio.get_running_loop().call_later(0.3, workers[0].kill)
            _, (consent,) = await consent_of(leg, calls, folder)
        assert (leg.queue.dropped == 0, consent["heard"], folder.exists()) == (whole, whole, whole)

    virtual_time.run(run())


@pytest.mark.parametrize(("held", "again"), [((1.0, 1.2), True), ((2.2, 12.0), True), ((0.0, 0.3), False)])
def test_a_line_said_while_the_caller_holds_the_call_is_said_again_when_it_goes_on(
    held: tuple[float, float], again: bool, tmp_path: Path
) -> None:
    """The line is said from frame 5 on, from 0.4 to 2.4 s, and again whenever it is asked for."""
    script: dict[int, list[Output]] = {5 + 5 * n: [AgentText(5 + 5 * n, f" {w}")] for n, w in enumerate(LINE.split())}
    engine = ScriptedEngine(script)
    asked: list[float] = []

    async def run() -> None:
        leg = QueuedLeg(20.0)
        loop = asyncio.get_running_loop()

        async def say(text: str) -> None:
            asked.append(loop.time())
            frame = len(leg.played) + 3
            for place, word in enumerate(text.split()):
                script[frame + 5 * place] = [AgentText(frame + 5 * place, f" {word}")]

        engine.session.say = say  # type: ignore[method-assign]
        for at, on_hold in zip(held, (True, False), strict=True):
            loop.call_later(at, setattr, leg, "on_hold", on_hold)
        call, (consent,) = await consent_of(leg, engine, tmp_path)
        assert consent["heard"]
        assert len(asked) == again
        assert all(at >= held[1] for at in asked)
        assert call.counters.seconds() > consent["at"] > max(held[1], 2.4)

    virtual_time.run(run())
