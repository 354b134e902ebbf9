"""A phone line in memory, and engines that say what a script holds: both ends of a call without a phone or a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.engine import EchoSession, Engine
from gateway.leg import CallInfo, LegError
from gateway.recording.recorder import Recorder, RecordingPlan
from model.wire import AgentFrame, Output, SessionRequest
from tests import virtual_time

PLAN = CallPlan("bank", "abc123", SessionRequest("c1"), transfers={"person": "+15550123"}, fallback="+15550999")
LOUD = np.full(160, 5_000, np.int16).tobytes()


@dataclass
class MemoryLeg:
    """A phone line without a phone: sends `seconds` of sound in real time, then hangs up or goes silent."""

    seconds: float
    then_silent: bool = False
    broken: bool = False
    on_hold: bool = False
    lost: int = 0
    never_drains: bool = False
    holds: float = 0.0
    """Seconds for which the line holds what it is handed before it plays it."""
    late: float = 0.0
    """Seconds by which the first two frames, and only they, come late: the gateway was busy as the call began."""
    info: CallInfo = field(default_factory=lambda: CallInfo("c1", "+15550199", "+15550100", "memory", "CA1"))
    played: list[tuple[float, bytes]] = field(default_factory=list)
    flushed: int = 0
    transferred: str = ""
    hung_up: list[str] = field(default_factory=list)
    answered: int = 0
    on_digit: Callable[[str], None] | None = None
    outcome_before_hangup: Callable[[], bool] = lambda: True

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(round(self.seconds / 0.02)):
            due = start + 0.02 * number + (self.late if number < 2 else 0.0)
            await asyncio.sleep(max(0.0, due - loop.time()))
            heard(LOUD)
        if self.broken:
            raise LegError("media before start")
        if self.then_silent:
            await asyncio.Event().wait()

    def answer(self) -> None:
        self.answered += 1

    async def play(self, pcm: bytes) -> Sequence[int]:
        self.played.append((asyncio.get_running_loop().time(), pcm))
        return ()

    async def flush(self) -> None:
        self.flushed += 1

    async def drain(self, timeout: float) -> bool:
        flushed = self.flushed
        await asyncio.sleep(timeout if self.never_drains else self.holds)
        return not self.never_drains and flushed == self.flushed

    async def transfer(self, target: str) -> None:
        self.transferred = target

    async def hangup(self, reason: str) -> None:
        assert self.outcome_before_hangup()
        self.hung_up.append(reason)


class ScriptedSession(EchoSession):
    """Echoes, and says what the script holds for a frame just before that frame."""

    def __init__(self, script: dict[int, list[Output]]) -> None:
        super().__init__()
        self.script = script
        self.said: list[str] = []
        self.closed = 0

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            if isinstance(output, AgentFrame):
                for extra in self.script.get(output.index, []):
                    yield extra
            yield output

    async def say(self, text: str) -> None:
        self.said.append(text)

    async def close(self) -> None:
        self.closed += 1
        await super().close()


class ScriptedEngine:
    def __init__(self, script: dict[int, list[Output]] | None = None) -> None:
        self.session = ScriptedSession(script or {})

    async def open(self, request: SessionRequest) -> ScriptedSession:
        return self.session


def place(leg: MemoryLeg, engine: Engine, plan: CallPlan = PLAN, recording: Path | None = None) -> Call:
    async def run() -> Call:
        call = Call(leg, engine, plan, Recorder(RecordingPlan(recording)) if recording else None)
        leg.outcome_before_hangup = call.outcome.done
        assert await call.run() == call.outcome.result().reason
        return call

    return virtual_time.run(run())
