"""What a call's record says of frames that its engine answered late, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from gateway.call_document import to_document
from gateway.desk import _record
from gateway.engine import EchoEngine, EchoSession
from model.wire import AgentFrame, Done, Late, Output, SessionRequest
from tests.gateway.memory_line import MemoryLeg, ScriptedEngine, place


class LateSession(EchoSession):
    """Says of every tenth frame that it came late."""

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            yield output
            if isinstance(output, AgentFrame) and output.index % 10 == 0:
                yield Late(output.index)


class LateEngine:
    async def open(self, request: SessionRequest) -> LateSession:
        return LateSession()


def test_what_the_engine_answered_late_is_in_the_calls_record() -> None:
    call = place(MemoryLeg(seconds=4), LateEngine())
    assert call.counters.frames_out == pytest.approx(50, abs=2)
    record = to_document(_record(call, None, datetime.now(UTC)))
    assert record["metrics"]["agent_frames_late"] == 5


class StandingSession(EchoSession):
    """Answers no frame from the `last` on."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            if isinstance(output, AgentFrame) and output.index >= self._last:
                await asyncio.Event().wait()
            yield output


@dataclass
class StandingEngine:
    last: int

    async def open(self, request: SessionRequest) -> StandingSession:
        return StandingSession(self.last)


def test_what_an_engine_had_not_answered_when_the_caller_hung_up_is_late_in_the_calls_record() -> None:
    call = place(MemoryLeg(seconds=4), StandingEngine(last=36))
    assert call.outcome.result().reason == "caller_hangup"
    record = to_document(_record(call, None, datetime.now(UTC)))
    owed = call.counters.frames_in - call.counters.frames_out
    assert owed == pytest.approx(1 / 0.08, abs=2)
    assert 11 <= record["metrics"]["agent_frames_late"] < owed


def test_what_is_not_yet_due_when_the_caller_hangs_up_is_not_late() -> None:
    frames = place(MemoryLeg(seconds=4), EchoEngine()).counters.frames_in
    counters = place(MemoryLeg(seconds=4), StandingEngine(last=frames - 1)).counters
    assert counters.frames_in - counters.frames_out == 1
    assert counters.agent_frames_late == 0


def test_what_comes_after_the_agents_goodbye_is_not_owed() -> None:
    call = place(MemoryLeg(seconds=8, never_drains=True), ScriptedEngine({20: [Done(20, "goodbye")]}))
    assert call.outcome.result().reason == "agent_goodbye"
    assert call.counters.agent_frames_late == 0
